"""What the customers of the demo write about: for each intent, the sentences that carry it.

`{p}` stands for the product ("blue kettle"), `{a}` for the product with its article ("an electric kettle"). Each pool
is a pair: sentences for training rows and sentences for held-out rows only, so that no held-out answer can be learnt
by heart. One sentence carries one intent and nothing of urgency: no sentence that asks for money speaks of damage,
none names a day.
"""

from __future__ import annotations

from typing import NamedTuple


class Pool(NamedTuple):
    """Wordings of one thing, and who may use them."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


PRODUCTS: dict[str, tuple[str, ...]] = {
    "kettle": ("kettle", "electric kettle"),
    "toaster": ("toaster", "two-slice toaster"),
    "speaker": ("speaker", "bluetooth speaker"),
    "lamp": ("lamp", "desk lamp"),
    "backpack": ("backpack", "hiking backpack"),
    "blender": ("blender", "smoothie blender"),
    "jacket": ("jacket", "rain jacket"),
    "keyboard": ("keyboard", "wireless keyboard"),
    "camera": ("camera", "digital camera"),
    "drill": ("drill", "cordless drill"),
    "tent": ("tent", "camping tent"),
    "printer": ("printer", "laser printer"),
}
"""Product of the ticket -> what customers call it."""

ISSUES: dict[str, Pool] = {
    "refund": Pool(
        train=(
            "I would like my money back for the {p}.",
            "I sent the {p} back and the refund has not reached my account.",
            "Please refund the {p}, it is not for me after all.",
            "Can I return the {p} and get a refund?",
            "Refund for the {p} please.",
            "The {p} went back to you in its box, now I want the money for it.",
            "I was promised a refund for {a} and nothing has been paid.",
            "You charged me twice for the {p}, please pay one of them back.",
            "I do not like the {p} and want to be reimbursed.",
            "How do I get reimbursed for the {p} I returned?",
            "I returned {a}, but my card was never credited.",
            "Please give me back what I paid for the {p}.",
        ),
        held_out=(
            "I am asking for a full refund of the {p}.",
            "The {p} does not suit me, so please send my money back.",
            "I posted {a} back to you and have not seen the refund yet.",
            "Kindly reimburse me for the {p}.",
        ),
    ),
    "delivery_late": Pool(
        train=(
            "My {p} still has not arrived.",
            "Where is my {p}? It should be here by now.",
            "I am still waiting for the {p} I bought from you.",
            "The delivery of my {p} is overdue.",
            "The tracking page for the {p} has not moved for 9 days.",
            "The parcel with my {p} is late.",
            "The courier never turned up with the {p}.",
            "I bought {a} weeks ago and nothing has been delivered.",
            "The {p} was meant to come long ago and there is no sign of it.",
            "No {p} yet, the parcel seems to be stuck somewhere.",
            "Your site says the {p} is on its way, but it never comes.",
            "The {p} is delayed again.",
        ),
        held_out=(
            "The {p} I paid for has not been delivered yet.",
            "My {p} is late, has the parcel been lost?",
            "I keep waiting for {a} that does not arrive.",
            "The delivery date of the {p} has passed and the parcel is not here.",
        ),
    ),
    "damaged": Pool(
        train=(
            "The {p} arrived broken.",
            "My {p} came with a big crack in it.",
            "There is a dent in the {p} and it does not work.",
            "The {p} was damaged in the post.",
            "I unpacked the {p} and one part had snapped off.",
            "The box was crushed and so is the {p} inside.",
            "The {p} you sent me is scratched all over.",
            "The {p} is faulty, it stopped working on day one.",
            "I received a defective {p}.",
            "My {p} fell to pieces when I took it out of the box.",
            "The {p} was torn open and bent when it got here.",
            "Broken {p} in the parcel.",
        ),
        held_out=(
            "When I opened the parcel, the {p} was cracked and broken.",
            "The {p} reached me damaged.",
            "My {p} turned out to be defective.",
            "The {p} has dents and scratches and a part is broken off.",
        ),
    ),
    "wrong_item": Pool(
        train=(
            "I ordered {a} but there was something else in the box.",
            "You sent me the wrong {p}, this is another model.",
            "The parcel should have held {a}, but I found garden gloves.",
            "I got somebody else's things instead of the {p}.",
            "This is not the {p} I ordered, the colour is wrong.",
            "I asked for {a} and received a box of socks.",
            "You mixed up my parcel: no {p} in it, just a vase.",
            "The {p} I received is a different one from the picture I chose.",
            "Wrong product delivered, I had chosen {a}.",
            "Instead of the {p} you packed a set of towels.",
            "I was sent the wrong size of the {p}.",
            "The label says {p}, the content is a puzzle.",
        ),
        held_out=(
            "I opened the box and it was not the {p} I had ordered but a pillow.",
            "You delivered the wrong thing, I ordered {a}.",
            "Instead of {a} I received a different product.",
            "This is the wrong {p}, I picked another colour.",
        ),
    ),
    "cancel": Pool(
        train=(
            "Please cancel my order for the {p}.",
            "I want to cancel the {p}.",
            "I changed my mind about the {p}, please do not ship it.",
            "Can I still cancel {a} I bought from you?",
            "I ordered {a} by mistake, please stop it before it ships.",
            "Please call off the purchase of the {p}.",
            "I no longer need the {p}, cancel it.",
            "Do not send the {p}, I found one elsewhere.",
            "I clicked twice and do not want the second {p}, please take it off the order.",
            "Cancellation of my {p}, please.",
            "Please withdraw my order of {a} before you pack it.",
            "Stop the shipment of the {p}, I have no use for it any more.",
        ),
        held_out=(
            "I wish to cancel the purchase of the {p}.",
            "Please do not ship the {p}, I do not want it any longer.",
            "Could you cancel {a} that I ordered by accident?",
            "The {p} is not needed any more, please cancel.",
        ),
    ),
    "invoice": Pool(
        train=(
            "Could you send me the invoice for the {p}?",
            "I need a receipt for the {p}.",
            "There was no invoice in the box with the {p}.",
            "Please email me the bill for the {p}, it is for my tax return.",
            "My company name is missing on the invoice for the {p}.",
            "Where can I download the receipt for my {p}?",
            "I need a proper invoice for {a} with the VAT on it.",
            "The invoice for the {p} has the wrong company on it, please issue a new one.",
            "Invoice for the {p} please.",
            "My accountant asks for the bill of the {p}.",
            "I lost the receipt of my {p}, can I have a copy?",
            "Please send the invoice of the {p} as a PDF.",
        ),
        held_out=(
            "May I have a copy of the invoice for the {p}?",
            "I cannot find the receipt for {a} anywhere, please send it again.",
            "Our bookkeeping needs the bill for the {p}.",
            "Please correct the VAT number on the invoice of my {p}.",
        ),
    ),
    "change_address": Pool(
        train=(
            "I have moved, please send the {p} to my new address.",
            "Please change the delivery address for the {p}.",
            "Can the {p} go to my office instead of my home?",
            "I gave the wrong street for the {p}, it should be 14 Mill Lane.",
            "Please deliver the {p} to my neighbour at number 7.",
            "The address on my {p} order is out of date.",
            "I typed an old address for {a}, can you update it?",
            "The postcode for the {p} is wrong, please correct it.",
            "Ship the {p} to my parents' house instead.",
            "New shipping address for the {p}: 3 Station Road.",
            "I would rather have the {p} sent to a pick-up point.",
            "My flat number is missing from the address for the {p}, it is 22.",
        ),
        held_out=(
            "Please send the {p} to another address, I live at 5 Park Street now.",
            "I need to change where the {p} is delivered.",
            "The house number in the delivery address of my {p} is wrong, it is 18.",
            "Can you update the shipping address for {a}?",
        ),
    ),
    "question": Pool(
        train=(
            "Does the {p} come with a manual?",
            "How long is the warranty on the {p}?",
            "Is the {p} made of recycled material?",
            "How heavy is the {p}?",
            "I am wondering how to clean the {p}.",
            "Which colours does the {p} come in?",
            "Can you tell me the size of the {p}?",
            "What is the difference between the {p} and the older model?",
            "Does the {p} fit in a small suitcase?",
            "I have a question about the {p}: can it be used outdoors?",
            "Are spare parts sold for the {p}?",
            "Is {a} a good present for a child of 10?",
        ),
        held_out=(
            "What is the {p} made of?",
            "How many years of warranty does the {p} have?",
            "A question about the {p}: how large is it?",
            "Can you tell me how to store the {p} in winter?",
        ),
    ),
}
"""Intent of the ticket -> the sentence that says it."""
