"""What surrounds the matter in a customer's message: hurry or patience, the order number, greetings, small talk, typos.

Pools are pairs (training rows, held-out rows), as in `tickets_text`. `{n}` stands for the digits of the order number.
"""

from __future__ import annotations

from topcoat.demo.tickets_text import Pool

URGENCY: dict[str, Pool] = {
    "low": Pool(
        train=(
            "There is no rush.",
            "It is not urgent at all.",
            "Take your time.",
            "No hurry, whenever it suits you.",
            "Answer whenever you have a quiet moment.",
            "This can wait.",
            "I am in no hurry.",
            "It does not matter when you get to it.",
            "Not urgent, just when you have time.",
            "Any time this month is fine.",
            "Please put this at the bottom of your pile.",
            "I can easily wait a few weeks.",
            "There is no hurry at all.",
            "Take as long as you need.",
            "Take all the time you want.",
            "I do not mind waiting.",
            "No rush with this.",
            "It is really no emergency, any day will do.",
            "This is not pressing.",
            "Waiting a while is fine with me.",
        ),
        held_out=(
            "There is no hurry with this.",
            "It is really not urgent.",
            "Take all the time you need.",
            "I do not mind waiting a few weeks.",
            "No rush, any time is fine.",
        ),
    ),
    "normal": Pool(
        train=(
            "Please let me know.",
            "What do I have to do?",
            "I look forward to your answer.",
            "Please write back to me.",
            "Please tell me how to go on.",
            "How does that work?",
            "I hope you can help me.",
            "Please look into it.",
            "Could you help me, please?",
            "Please let me know how it goes on.",
            "I would be happy to hear from you.",
            "Can you help?",
            *[""] * 6,
        ),
        held_out=(
            "Please let me know what happens next.",
            "I would be glad to hear from you.",
            "Could you help me with that?",
            "",
            "",
        ),
    ),
    "high": Pool(
        train=(
            "This is urgent!",
            "I need this sorted out today.",
            "Please reply as soon as possible.",
            "It is an emergency.",
            "I need an answer before tomorrow.",
            "ASAP please.",
            "This cannot wait.",
            "Please act immediately.",
            "I leave on Friday, so hurry.",
            "Very urgent, call me right away.",
            "Please treat this with top priority.",
            "I need it solved within hours.",
            "Time is running out, be quick!",
            "Drop everything and help me now!",
            "I cannot wait any longer.",
            "Please hurry up!",
            "It has to be done by tomorrow.",
            "Please help me right now, it is urgent.",
            "I need your answer immediately.",
            "Act today, please.",
        ),
        held_out=(
            "Please hurry, I need this done by tomorrow.",
            "This is really urgent, please act today.",
            "I really cannot wait, please hurry!",
            "Please help me immediately.",
            "Answer right away, it is an emergency.",
        ),
    ),
}
"""Urgency of the ticket -> the sentence that shows it; no sentence, or a neutral one, is normal."""

ORDER = Pool(
    train=(
        "My order number is {n}.",
        "Order {n}.",
        "It is order #{n}.",
        "Order no. {n}.",
        "The order was {n}.",
        "See order #{n}.",
        "The number on the email is #{n}.",
        "My reference is {n}.",
        "order: {n}",
        "This is about order {n}.",
    ),
    held_out=(
        "The order number is {n}.",
        "You will find it under order #{n}.",
        "My order: no. {n}.",
        "I mean order {n}.",
    ),
)
"""A sentence of its own for the order number."""

INLINE = Pool(
    train=(" (order {n})", " (#{n})", " (order no. {n})", ", order {n}", " - order #{n}"),
    held_out=(" (no. {n})", " (order #{n})", ", order no. {n}"),
)
"""The order number inside the sentence of the matter, before its last sign."""

GREETING = Pool(
    train=("Hi,", "Hello,", "Hello there,", "Good morning,", "Dear team,", "Hey,", "Dear Sir or Madam,", "Hi there!"),
    held_out=("Good afternoon,", "Hello team,", "Greetings,"),
)

SMALL_TALK = Pool(
    train=(
        "I have been a customer for 6 years.",
        "I like your shop.",
        "The weather is awful here.",
        "My sister told me about you.",
        "I tried the phone line first.",
        "I hope you are well.",
        "Your website is easy to use.",
        "I am writing from my phone.",
        "My dog barked at the postman.",
        "I paid 39 euros by card.",
        "It was meant for my brother.",
        "Sorry for my English.",
        "I am a teacher.",
        "We live on the 2nd floor.",
        "It was a birthday present.",
        "I saw it in your spring catalogue.",
        "The chat was closed.",
        "I could not find this on your help page.",
        "My neighbour has one as well.",
        "I bought it with a voucher of 10 pounds.",
    ),
    held_out=(
        "I have shopped with you since 2019.",
        "A friend of mine recommended you.",
        "It rains all day here.",
        "I could not get through on the phone.",
        "My cat sends her regards.",
        "It cost me 45 dollars.",
        "I hope you had a nice weekend.",
    ),
)
"""Sentences that change nothing in the ticket."""

CLOSING = Pool(
    train=(
        "Thanks",
        "Thank you!",
        "Kind regards, Anna",
        "Best, Tom",
        "Cheers",
        "Many thanks",
        "Regards, J. Miller",
        "Thx",
    ),
    held_out=("Thanks a lot", "Best wishes, Maria", "Yours, Peter"),
)

LAYOUTS = Pool(
    train=(
        "greeting issue order urgency closing",
        "issue order urgency talk",
        "greeting talk issue urgency order",
        "issue urgency order closing",
        "order issue urgency",
        "greeting order talk issue urgency",
        "urgency issue order",
        "issue talk urgency order closing",
        "greeting urgency issue order talk",
        "talk issue order urgency closing",
    ),
    held_out=(
        "greeting issue talk order urgency",
        "order urgency issue closing",
        "talk urgency issue order",
        "greeting issue urgency talk order closing",
    ),
)
"""Which parts a message has, and in which order; a part can be empty."""

TYPOS: dict[str, str] = {
    "please": "plese",
    "received": "recieved",
    "the": "teh",
    "because": "becuase",
    "would": "woud",
    "have": "hav",
    "address": "adress",
    "number": "nubmer",
    "arrived": "arived",
    "you": "u",
    "your": "yuor",
    "and": "adn",
    "answer": "anwser",
    "waiting": "wating",
    "different": "diferent",
    "something": "somthing",
    "company": "compnay",
    "tomorrow": "tommorow",
}
"""Slips of the keyboard and of spelling, on words that decide nothing alone."""
