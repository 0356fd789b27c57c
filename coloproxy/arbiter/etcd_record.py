# SPDX-License-Identifier: Apache-2.0
"""Who owns a pair, as etcd keeps it: keys, values, and what a claim does with what it finds. No I/O.

    <prefix>/<pair>/owner      {"generation": 7, "host": "a", "claim": "5f0c..."}
    <prefix>/<pair>/alive/a    {"host": "a", ...}, bound to a lease

The owner's key changes by compare-and-set only: by its mod_revision as it was read, or that there is none.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass

from .claim import HOSTS, Claim, Verdict


class Malformed(Exception):
    """Something that was read is not what it must be; the text names the place."""


@dataclass(frozen=True, slots=True)
class Owner:
    """What the owner's key holds.

    Attributes:
        claim: random; tells apart two claims of one host.
        revision: etcd's mod_revision; 0: there is no such key.
    """

    generation: int
    host: str | None
    claim: str
    revision: int

    def __str__(self) -> str:
        return f"host {self.host} at generation {self.generation}" if self.host else "nobody"


NOBODY = Owner(0, None, "", 0)


@dataclass(frozen=True, slots=True)
class Decided:
    """A claim's end."""

    verdict: Verdict
    reason: str


def decide_claim(claim: Claim, claim_id: str, found: Owner) -> Decided | None:
    """What a claim comes to, when this is found; None: write it, if it is still so.

    An empty key is suspicious: whoever was protected has recorded it (`record`), so this etcd has lost its data, or is
    not the one. Only the first generation of all can be claimed there.
    """
    if found.host is None:
        if claim.generation == 1:
            return None
        why = "there is no record of this pair: its owner was never recorded, or this etcd has lost its data"
        return Decided(Verdict.UNKNOWN, why)
    if found.generation < claim.generation:
        return None
    if found.generation == claim.generation and found.host == claim.host:
        return Decided(Verdict.WON, "won" if found.claim == claim_id else "won by an earlier claim")
    if found.generation == claim.generation:
        return Decided(Verdict.LOST, f"the other host, {found.host}, has won generation {found.generation}")
    return Decided(Verdict.LOST, f"generation {claim.generation} is past: the owner is {found}")


def decide_record(host: str, generation: int, found: Owner) -> bool | None:
    """Whether this is on record, when that is found; None: write it, if it is still so."""
    if found.generation < generation:
        return None
    return found.generation == generation and found.host == host


# ------------------------------------------------------------------ keys and values


def owner_key(prefix: str, pair: str) -> bytes:
    return f"{prefix}/{pair}/owner".encode()


def alive_key(prefix: str, pair: str, host: str) -> bytes:
    return f"{prefix}/{pair}/alive/{host}".encode()


def encode(data: bytes) -> str:
    """As the gateway wants bytes."""
    return base64.b64encode(data).decode("ascii")


def put(key: bytes, value: Mapping[str, object], lease: int = 0) -> dict[str, object]:
    """A put request."""
    text = json.dumps(value, separators=(",", ":"))
    request: dict[str, object] = {"key": encode(key), "value": encode(text.encode())}
    if lease:
        request["lease"] = str(lease)
    return request


def set_owner(key: bytes, found: Owner, host: str, generation: int, claim_id: str) -> dict[str, object]:
    """A transaction: write it if the key is as it was found; else say what it is now."""
    value = {"generation": generation, "host": host, "claim": claim_id}
    unchanged: dict[str, object] = {"key": encode(key), "result": "EQUAL"}
    if found.revision:
        unchanged |= {"target": "MOD", "mod_revision": str(found.revision)}
    else:
        unchanged |= {"target": "CREATE", "create_revision": "0"}
    return {
        "compare": [unchanged],
        "success": [{"request_put": put(key, value)}],
        "failure": [{"request_range": {"key": encode(key)}}],
    }


# ------------------------------------------------------------------ answers


def number(holder: Mapping[str, object], name: str, place: str) -> int:
    """An int64, which JSON of protocol buffers has as a string; 0 is left out there. Raises Malformed."""
    value = holder.get(name, 0)
    if isinstance(value, str) and value.isascii() and value.removeprefix("-").isdigit() and len(value) <= 20:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise Malformed(f"{place}.{name} is no number: {value!r:.60}")


def an_object(value: object, place: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise Malformed(f"{place} is no object: {value!r:.60}")
    return value


def a_list(holder: Mapping[str, object], name: str, place: str) -> list[object]:
    value = holder.get(name, [])
    if not isinstance(value, list):
        raise Malformed(f"{place}.{name} is no list: {value!r:.60}")
    return value


def read_one(answer: Mapping[str, object], key: bytes, place: str) -> tuple[Mapping[str, object], int] | None:
    """The JSON object that a range request for one key has found, and its mod_revision. Raises Malformed."""
    found = a_list(answer, "kvs", place)
    if not found:
        return None
    if len(found) != 1:
        raise Malformed(f"{place}.kvs has {len(found)} keys, where one was asked for")
    place = f"{place}.kvs[0]"
    one = an_object(found[0], place)
    if _bytes(one, "key", place) != key:
        raise Malformed(f"{place}.key is another than was asked for")
    revision = number(one, "mod_revision", place)
    if revision <= 0:
        raise Malformed(f"{place}.mod_revision is {revision}")
    name = key.decode()
    try:
        value = json.loads(_bytes(one, "value", place))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the key {name} holds no JSON: {error}") from error
    return an_object(value, f"what the key {name} holds"), revision


def read_owner(answer: Mapping[str, object], key: bytes, place: str) -> Owner:
    """Of a range request's answer. Raises Malformed."""
    found = read_one(answer, key, place)
    if found is None:
        return NOBODY
    value, revision = found
    name = key.decode()
    generation, host, claim = value.get("generation"), value.get("host"), value.get("claim")
    if isinstance(generation, bool) or not isinstance(generation, int) or not 0 < generation < 2**63:
        raise Malformed(f"the key {name} holds no generation: {generation!r:.60}")
    if host not in HOSTS:
        raise Malformed(f"the key {name} holds no host: {host!r:.60}")
    if not isinstance(claim, str):
        raise Malformed(f"the key {name} holds no claim: {claim!r:.60}")
    return Owner(generation, host, claim, revision)


def read_set(answer: Mapping[str, object], key: bytes) -> Owner | None:
    """Of `set_owner`'s answer: None: it is written; else what is there instead. Raises Malformed."""
    done = answer.get("succeeded", False)
    if not isinstance(done, bool):
        raise Malformed(f"succeeded is no truth value: {done!r:.60}")
    responses = a_list(answer, "responses", "answer")
    if len(responses) != 1:
        raise Malformed(f"answer.responses has {len(responses)} parts, not 1")
    part = an_object(responses[0], "responses[0]")
    if done:
        if "response_put" not in part:
            raise Malformed("responses[0] is no answer to a put")
        return None
    if "response_range" not in part:
        raise Malformed("responses[0] is no answer to a range")
    found = an_object(part["response_range"], "responses[0].response_range")
    return read_owner(found, key, "responses[0].response_range")


def _bytes(holder: Mapping[str, object], name: str, place: str) -> bytes:
    value = holder.get(name, "")
    if not isinstance(value, str):
        raise Malformed(f"{place}.{name} is no base64: {value!r:.60}")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed(f"{place}.{name} is no base64: {error}") from error
