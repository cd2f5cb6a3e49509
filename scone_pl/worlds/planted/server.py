"""An OpenAI-compatible server on loopback that answers from the truth, with a set rate of errors, and misbehaves."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from aiohttp import web
from PIL import Image

from scone_pl.data.decoding import decode_rgb
from scone_pl.worlds.planted.pools import IconPools, consistent
from scone_pl.worlds.planted.scenes import FLAT, NOTO, Scene, Subject, encode, meant, names, pasted, phrase, render

_QUESTIONS = {
    "that makes one image from": "combine",
    "You check training data": "consistency",
    "Which one subject is the most": "subject",
    "Image 1 shows several subjects. Image 2": "locate",
    "Write one short, fluent instruction": "reverse",
    "Is this a fluent": "fluency",
    "Which words name": "names",
    "an image editor that adds": "addition",
    "Image 1 was edited": "shared",
    "Replace the words": "replace",
    "does the instruction refer to": "which",
    "Which of them does image 2 show": "shown",
    "Image 1 is reference image": "boxes",
    "prompts for a text-to-image model": "describe",
    "Which of them have something on top": "watermarks",
}
WATERMARK = Subject("watermark", FLAT)
"""In the scene of an image that has one."""
_CANDIDATE = re.compile(r"^([A-Z]): \[(\d+), (\d+), (\d+), (\d+)\]$", re.MULTILINE)


class IconServer:
    """`with IconServer(pools) as server:` serves at `server.url`."""

    def __init__(self, pools: IconPools, errors: float = 0.05, faults: float = 0.0, delay: float = 0.0) -> None:
        """Prepares the server.

        Args:
            pools: the truth.
            errors: fraction of answers that are wrong.
            faults: fraction of requests that end in a busy or broken answer.
            delay: seconds before each answer.
        """
        self.pools, self.errors, self.faults, self.delay = pools, errors, faults, delay
        self.requests: Counter[str] = Counter()
        """Digest of a request's content -> how often it was answered as it should be."""
        self.url = ""
        self._received: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> IconServer:
        self._thread.start()
        self._ready.wait(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/images/edits", self._edit)
        app.router.add_post("/v1/images/generations", self._generate)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    # ------------------------------------------------------------------ requests
    async def _chat(self, request: web.Request) -> web.Response:
        raw = await request.read()
        generator, digest = self._draw(raw)
        if self.delay:
            await asyncio.sleep(self.delay)
        if (fault := self._fault(generator)) is not None:
            return fault
        content = json.loads(raw)["messages"][0]["content"]
        text = content[0]["text"]
        images = [base64.b64decode(p["image_url"]["url"].partition("base64,")[2]) for p in content if "image_url" in p]
        scenes = [self.pools.known.scene(image) or Scene(()) for image in images]
        name = next((name for words, name in _QUESTIONS.items() if words in text), "")
        wrong = generator.random() < self.errors
        answer: Callable[..., Any] = getattr(self, f"_{name}")
        # What an answer says depends on the question alone; whether it is wrong, on how often it was asked, too.
        answered = json.dumps(answer(text, scenes, wrong, random.Random(digest)))
        self.requests[digest] += 1
        return _completion(answered, tokens=300 + 200 * len(images))

    async def _edit(self, request: web.Request) -> web.Response:
        form = await request.post()
        parts = [part for name in ("image", "image[]") for part in form.getall(name, ())]
        images = [part.file.read() for part in parts if isinstance(part, web.FileField)]
        prompt = str(form["prompt"])
        generator, digest = self._draw(b"".join(images) + prompt.encode())
        if (fault := self._fault(generator)) is not None:
            return fault
        if len(images) > 1:
            scenes = [self.pools.known.scene(image) or Scene(()) for image in images]
            return self._drawn([subject for scene in scenes for subject in scene.subjects], generator, digest)
        (data,) = images
        scene = self.pools.known.scene(data) or Scene(())
        image = decode_rgb(data)
        wrong = generator.random() < self.errors
        if scene.subjects and not wrong:
            match = re.search(r"Add (a|another) (\w+)", prompt)
            own = scene.subjects[0]
            new = Subject(match[2] if match else own.name, NOTO if own.drawing != NOTO else FLAT)
            slot = 1 if (own.box[0] + own.box[2]) / 2 < 0.5 else 0
            numbers = np.random.default_rng(int(digest[:8], 16))
            image, box = pasted(image.resize((160, 160)), new, slot, 2, numbers)
            added = Subject(new.name, new.drawing, 0, box)
            scene = Scene((own, added) if slot else (added, own))
        return self._image(image, scene, digest)

    async def _generate(self, request: web.Request) -> web.Response:
        raw = await request.read()
        generator, digest = self._draw(raw)
        if (fault := self._fault(generator)) is not None:
            return fault
        words = re.findall(r"[a-z]+", json.loads(raw)["prompt"].lower())
        return self._drawn([Subject(word, FLAT) for word in words if word in names()], generator, digest)

    def _drawn(self, subjects: list[Subject], generator: random.Random, digest: str) -> web.Response:
        """An image of these subjects; a wrong one lacks the last."""
        if generator.random() < self.errors:
            subjects = subjects[:-1]
        image, scene = render(subjects, int(digest[:8], 16))
        return self._image(image, scene, digest)

    def _image(self, image: Image.Image, scene: Scene, digest: str) -> web.Response:
        data = encode(image)
        self.pools.known.add(image, scene, data)
        self.requests[digest] += 1
        return web.json_response({"data": [{"b64_json": base64.b64encode(data).decode()}]})

    def _draw(self, content: bytes) -> tuple[random.Random, str]:
        digest = hashlib.sha256(content).hexdigest()
        self._received[digest] += 1
        return random.Random(f"{digest} {self._received[digest]}"), digest

    def _fault(self, generator: random.Random) -> web.Response | None:
        if generator.random() >= self.faults:
            return None
        kind = generator.choice(("429", "500", "garbage", "cut off", "prose"))
        if kind == "429":
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0.05"})
        if kind == "cut off":
            return _completion("<think>Let me look at the images one by one. First", finish_reason="length")
        if kind == "prose":
            return _completion("I would say that this looks rather nice.")
        body = b"\x00\xff garbage" if kind == "garbage" else b"oops"
        return web.Response(body=body, status=200 if kind == "garbage" else 500)

    # ------------------------------------------------------------------ answers
    def _consistency(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        instruction = _line(text, "Instruction: ")
        good = consistent(self.pools, scenes[:-1], scenes[-1], instruction)
        score = 4 if good != wrong else generator.randrange(4)
        return {"deductions": [] if score == 4 else ["something differs"], "score": score}

    def _subject(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        name = scenes[0].subjects[0].name if scenes[0].subjects else "thing"
        return {
            "subject": generator.choice(names()) if wrong else name,
            "scene": f"It stands in light number {generator.randrange(10**6)}.",
        }

    def _locate(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        if len(scenes) < 2 or not scenes[1].subjects:
            return {"subjects": _listed(scenes[0]), "same": 0, "phrase": ""}
        return _found(scenes[0], scenes[1].subjects[0], wrong, generator)

    def _shared(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        if not scenes[0].subjects or not scenes[1].subjects:
            return {"subjects": [{"name": "thing", "box": [0, 0, 1000, 1000]}], "same": 0, "phrase": ""}
        return _found(scenes[1], scenes[0].subjects[0], wrong, generator)

    def _reverse(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        found = re.search(r"only this one: (.*)\.\n", text)
        words = "it" if found is None or wrong else found[1]
        return {"instruction": f"Take {words} of image 1 to another light. {_line(text, 'What the new image shows: ')}"}

    def _fluency(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        return {"fluent": not wrong}

    def _names(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        instruction = text.split("\n\n")[1]
        number = re.search(r"from (\d+) reference", text)
        count = int(number[1]) if number else 1
        found = [word for word in re.findall(r"[a-z]+", instruction.lower()) if word in names()][:count]
        found += ["thing"] * (count - len(found))
        return {"names": [generator.choice(names()) for _ in found] if wrong else found}

    def _addition(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        own = re.search(r"shows (\w+)", text)
        name = own[1] if own else ""
        if "of the same kind" in text:
            return {"edit": f"Add another {name} that looks different", "added": f"another {name}"}
        other = generator.choice([one for one in names() if one != name])
        return {"edit": f"Add a {other} beside it", "added": f"a {other}"}

    def _replace(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        instruction = text.split("\n\n")[1]
        found = re.search(r'words "(.*)", which .* by "(.*) of image (\d+)"', " ".join(text.split()))
        if found is None or wrong:
            return {"instruction": instruction}
        name, new, number = found[1], found[2], found[3]
        result = re.sub(
            rf"(?:\bthe )?\b{name}\b(?: in image {number})?",
            f"{new} in image {number}",
            instruction,
            count=1,
            flags=re.IGNORECASE,
        )
        result = result[:1].upper() + result[1:]
        return {"instruction": result}

    def _which(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        letters = _letters(text, scenes[0])
        found = meant(_line(text, "Instruction: "), scenes[0])
        return {"candidate": _picked(letters, found, wrong, generator)}

    def _shown(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        letters = _letters(text, scenes[0])
        identities = [subject.identity for subject in scenes[1].subjects]
        found = [i for i, subject in enumerate(scenes[0].subjects) if subject.identity in identities]
        return {"candidate": _picked(letters, found, wrong, generator)}

    def _boxes(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        found = meant(text, scenes[0])
        listed = _listed(scenes[0])
        return {"subjects": [{**one, "wanted": (i in found) != wrong} for i, one in enumerate(listed)]}

    def _describe(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        number = re.search(r"Write (\d+) prompts", text)
        chosen = generator.sample(names(), int(number[1]) if number else 1)
        return {"prompts": [f"A picture of the {name}." for name in chosen], "names": chosen}

    def _combine(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        found = re.findall(r"^Image (\d+): (.*)$", text, re.MULTILINE)
        parts = [f"the {name} of image {number}" for number, name in (found[:-1] if wrong else found)]
        return {"instruction": f"Show {' and '.join(parts)} together on a meadow."}

    def _watermarks(self, text: str, scenes: list[Scene], wrong: bool, generator: random.Random) -> Any:
        marked = [i for i, scene in enumerate(scenes, 1) if WATERMARK in scene.subjects]
        return {"marked": [] if wrong else marked}


def _completion(text: str, finish_reason: str = "stop", tokens: int = 300) -> web.Response:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": tokens, "completion_tokens": len(text) // 4}
    return web.json_response({"model": "icons", "choices": [choice], "usage": usage})


def _line(text: str, label: str) -> str:
    return next((line[len(label) :] for line in text.splitlines() if line.startswith(label)), "")


def _listed(scene: Scene) -> list[dict[str, Any]]:
    return [{"name": s.name, "box": [round(1000 * value) for value in s.box]} for s in scene.subjects]


def _found(scene: Scene, subject: Subject, wrong: bool, generator: random.Random) -> dict[str, Any]:
    """Which subject of a scene is the same as another; a wrong answer picks another one, or a phrase that fits two."""
    same = [i for i, one in enumerate(scene.subjects) if one.identity == subject.identity]
    number = same[0] if same else -1
    if wrong:
        others = [i for i in range(len(scene.subjects)) if i != number]
        number = generator.choice(others) if others else -1
    words = phrase(scene, number) if number >= 0 else ""
    if wrong and number >= 0 and generator.random() < 0.5:
        words = f"the {scene.subjects[number].name}"
    return {"subjects": _listed(scene), "same": number + 1, "phrase": words}


def _letters(text: str, scene: Scene) -> dict[int, str]:
    """Index of a subject -> the letter of the nearest box in a question."""
    boxes = [(match[1], [int(match[i]) / 1000 for i in range(2, 6)]) for match in _CANDIDATE.finditer(text)]
    letters = {}
    for number, subject in enumerate(scene.subjects):
        near = min(boxes, key=lambda box: sum(abs(a - b) for a, b in zip(box[1], subject.box, strict=True)))
        letters[number] = near[0]
    return letters


def _picked(letters: dict[int, str], found: Sequence[int], wrong: bool, generator: random.Random) -> str:
    answer = "none" if not found else "several" if len(found) > 1 else letters.get(found[0], "none")
    if not wrong:
        return answer
    return generator.choice([one for one in (*letters.values(), "none", "several") if one != answer])
