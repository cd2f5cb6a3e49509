"""The tar members of one sample: what they are called, what they hold."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from dataclasses import asdict
from typing import Any, get_args

from scone_pl.data.sample import BrokenSampleError, Kind, Sample, parse_candidates

LONGEST_KEY = 80
"""Letters; a tar name holds 100."""

_UNUSABLE = re.compile(r"[^A-Za-z0-9_-]")
_REFERENCE = re.compile(r"ref(\d+)\.\w+$")


def parse_members(data: bytes, key: str, origin: str) -> Sample:
    """The sample in a run of tar members.

    Args:
        data: the bytes of all members of one sample.
        key: the key that the members must have.
        origin: where the bytes came from, for messages.

    Raises:
        BrokenSampleError: damaged headers, another sample's members, missing members, wrong JSON.
    """
    references: dict[int, bytes] = {}
    target, info = b"", None
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                stem, _, part = member.name.partition(".")
                stream = tar.extractfile(member)
                if stem != key or stream is None:
                    raise BrokenSampleError("torn shard", f"{origin}: found {member.name} in the place of {key}")
                content = stream.read()
                if not content:
                    raise BrokenSampleError("empty member", f"{origin}: {member.name} has no bytes")
                if match := _REFERENCE.match(part):
                    references[int(match[1])] = content
                elif part.startswith("target."):
                    target = content
                elif part == "json":
                    info = json.loads(content)
    except (tarfile.TarError, EOFError) as error:
        raise BrokenSampleError("torn shard", f"{origin}: sample {key}: {error}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, BrokenSampleError):
            raise
        raise BrokenSampleError("wrong JSON", f"{origin}: {key}.json: {error}") from None
    if info is None or sorted(references) != list(range(len(references))):
        raise BrokenSampleError("missing member", f"{origin}: sample {key} lacks its JSON or a reference image")
    try:
        if not isinstance(info["instruction"], str):
            raise BrokenSampleError("missing instruction", f"{origin}: {key}.json has no instruction text")
        return Sample(
            key=key,
            references=tuple(references[i] for i in range(len(references))),
            target=target,
            **_from_json(info),
        )
    except BrokenSampleError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BrokenSampleError("wrong JSON", f"{origin}: {key}.json: {error!r}") from None


def plain_key(name: str, longest: int = LONGEST_KEY) -> str:
    """`name` as a key of at most `longest` letters; what has to be changed gets a hash, so that names stay apart."""
    plain = _UNUSABLE.sub("_", name)
    if plain == name and len(name) <= longest:
        return name
    return f"{plain[: longest - 9]}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def sample_json(sample: Sample) -> bytes:
    """What the member `{key}.json` holds."""
    info = {
        "instruction": sample.instruction,
        "kind": sample.kind,
        "candidates": None
        if sample.candidates is None
        else [[asdict(candidate) for candidate in group] for group in sample.candidates],
        "metadata": sample.metadata,
        **({"answer": sample.answer} if sample.answer else {}),
    }
    return json.dumps(info, ensure_ascii=False).encode()


def _from_json(info: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(info, dict):
        raise TypeError("not an object")
    kind, metadata = info.get("kind", "single"), info.get("metadata") or {}
    answer = info.get("answer") or ""
    if kind not in get_args(Kind) or not isinstance(metadata, dict) or not isinstance(answer, str):
        raise ValueError(f"kind {kind!r}, metadata or answer of a wrong type")
    return {
        "instruction": info["instruction"],
        "kind": kind,
        "candidates": parse_candidates(info.get("candidates")),
        "metadata": metadata,
        "answer": answer,
    }
