"""A conversation with a model or a run: the messages so far, rendered exactly as training rendered them.

A run that learned plain text goes on with what is typed, and remembers nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from topcoat.adapters.attach import Adapters
from topcoat.adapters.files import load_adapter
from topcoat.adapters.settings import FullConfig
from topcoat.data.conversation import Conversation
from topcoat.data.labels import LABELLED
from topcoat.data.render import DOCUMENT, Renderer
from topcoat.data.template import Message
from topcoat.errors import TopcoatError
from topcoat.model.generate import generate
from topcoat.model.load import Base, load_model
from topcoat.model.settings import ModelSettings
from topcoat.recipe.load import load_recipe
from topcoat.recipe.schema import Recipe
from topcoat.runs.folder import RunFolder
from topcoat.runs.rounding import load_base


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn, and how long it may be."""

    max_new_tokens: int = 512
    """Longest answer."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """The share of probability that is drawn from."""
    seed: int = 0
    """Of the draws; every message of a conversation has its own."""


GREEDY = Sampling()


class Chat:
    """Turns of one conversation, and the model that answers."""

    def __init__(self, base: Base, adapters: Adapters | None) -> None:
        self.base, self.adapters = base, adapters
        self.renderer = Renderer(base.tokenizer)
        self.system: str | None = None
        self.messages: list[Message] = []

    def start(self, system: str | None) -> None:
        """Begin anew, with this system message or none."""
        self.system = system
        self.messages = [{"role": "system", "content": system}] if system else []

    def switch(self, on: bool) -> str:
        """Adapter on or off, in the middle of the conversation; returns what to tell."""
        if self.adapters is None:
            return "there is no adapter: this is a model as it is"
        self.adapters.switch(on)
        said = "the adapter answers" if on else "the base answers"
        return f"{said}, and reads the conversation so far; /reset forgets it" if self.messages else said

    def answer(self, text: str, on_piece: Callable[[str], None], sampling: Sampling = GREEDY) -> str:
        """The model's answer to `text`, also handed to `on_piece` as it comes. Both become part of the conversation.

        Raises TopcoatError, with the conversation as before, when it fills the context or the template refuses it.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        prompt = self.renderer.prompt_ids(asked)
        said = self._go_on(prompt, on_piece, replace(sampling, seed=sampling.seed + len(asked)))
        self.messages = [*asked, {"role": "assistant", "content": said}]
        return said

    def _go_on(self, prompt: list[int], on_piece: Callable[[str], None], sampling: Sampling) -> str:
        """What the model writes behind `prompt`."""
        stream = _Stream(self.base, on_piece)
        ids = generate(
            self.base.model,
            self.base.tokenizer,
            [prompt],
            sampling.max_new_tokens,
            self.renderer.stop_ids,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            on_token=stream.add,
        )[0]
        said = str(self.base.tokenizer.decode(ids, skip_special_tokens=True))
        stream.finish(said)
        return said


class LineByLine(Chat):
    """Each line is a text of its own: no template, no system message, nothing remembered."""

    def start(self, system: str | None) -> None:
        """Nothing is remembered between lines. Raises TopcoatError for a system message, which nothing reads."""
        if system:
            what = "this run learned plain texts: it takes no system message"
            raise TopcoatError(what, "--system", "write the whole text on one line")

    def ids_of(self, text: str) -> list[int]:
        """The text as its documents began in training, with nothing behind it."""
        return self.renderer.encode(Conversation(text=text), DOCUMENT).input_ids


class Continuation(LineByLine):
    """Each line is the beginning of a text, which goes on as the plain texts of the training did."""

    def answer(self, text: str, on_piece: Callable[[str], None], sampling: Sampling = GREEDY) -> str:
        """What comes after `text`. Raises TopcoatError when it fills the context."""
        return self._go_on(self.ids_of(text), on_piece, sampling)


class _Stream:
    """Token ids -> pieces of text, holding back characters whose bytes are not all there yet."""

    def __init__(self, base: Base, on_piece: Callable[[str], None]) -> None:
        self.tokenizer, self.on_piece = base.tokenizer, on_piece
        self.ids: list[int] = []
        self.said = 0

    def add(self, token: int) -> None:
        self.ids.append(token)
        text = str(self.tokenizer.decode(self.ids, skip_special_tokens=True))
        if not text.endswith("\ufffd"):
            self._say(text)

    def finish(self, text: str) -> None:
        self._say(text)

    def _say(self, text: str) -> None:
        if len(text) > self.said:
            self.on_piece(text[self.said :])
            self.said = len(text)


def open_chat(what: str, say: Callable[[str], None]) -> Chat:
    """A chat with the run in folder `what`, or with the model of that path or hub id.

    Raises TopcoatError when it is neither, or the run has not finished; Refused when the base is another than the
    adapter was trained on.
    """
    folder = RunFolder(Path(what))
    if not folder.recipe.is_file():
        return Chat(load_model(ModelSettings(path=what)), None)
    recipe = load_recipe(folder.recipe, check_files=False)
    folder.require_trained(recipe.adapter)
    if recipe.train.objective in LABELLED:
        return _open_labeller(folder, recipe, say)
    kind, how = Chat, ""
    if recipe.train.objective == "completion":
        kind, how = Continuation, "; it learned plain text, so each line is the beginning of a text"
    if isinstance(recipe.adapter, FullConfig):
        say(f"loading {folder.model}{how}")
        tuned = {"path": str(folder.model), "quantization": None, "chat_template": None, "revision": None}
        return kind(load_model(recipe.model.model_copy(update=tuned)), None)
    say(f"loading {recipe.model.path} and {folder.adapter}{how}")
    base = load_base(recipe.model, folder)
    return kind(base, load_adapter(base.model, folder.adapter, base.identity.model_dump()))


def _open_labeller(folder: RunFolder, recipe: Recipe, say: Callable[[str], None]) -> Chat:
    from topcoat.runs.labelling import Labeller, put_head_of  # which is a Chat of its own kind

    if isinstance(recipe.adapter, FullConfig):
        raise TopcoatError(
            f"the run learned {recipe.train.objective}, and its whole model is transformers' to load",
            where=str(folder.model),
            fix="AutoModelForSequenceClassification.from_pretrained loads it; an adapter's run can be talked to here",
        )
    say(f"loading {recipe.model.path} and {folder.adapter}; each line is a text to label")
    base = load_base(recipe.model, folder)
    put_head_of(base, folder.adapter)
    return Labeller(base, load_adapter(base.model, folder.adapter, base.identity.model_dump()))
