"""Envelope version 1, written from the formulas of the format's page alone, on Python's package `cryptography`.

    python3 tests/golden/envelope.py check          recomputes tests/vectors/envelope-v1.json, which Node made, and
                                                    fails unless every byte is the same
    python3 tests/golden/envelope.py seal < in.json [{"key", "nonce", "purpose", "owner", "field", "plaintext"}, …]
                                                    → [{"envelope", "text"}, …]
    python3 tests/golden/envelope.py open < in.json [{"key", "purpose", "owner", "field", "text" or "envelope"}, …]
                                                    → [{"plaintext"} or {"refused": why}, …]

Keys, nonces, plaintexts and envelopes are in hex. Keys come by standard input, because everybody on the machine can
read the arguments of a program.
"""

import base64
import json
import re
import sys
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.constant_time import bytes_eq

VERSION_AND_SUITE = bytes([1, 1])
ID, NONCE, TAG, COMMITMENT = 8, 24, 16, 32
OVERHEAD = len(VERSION_AND_SUITE) + ID + NONCE + TAG + COMMITMENT
GOLDEN = Path(__file__).resolve().parent.parent / "vectors" / "envelope-v1.json"


class Refused(Exception):
    pass


def cmac(key, *parts):
    mac = CMAC(AES(key))
    for part in parts:
        mac.update(part)
    return mac.finalize()


def key_id(key):
    return cmac(key, bytes([0, 1, 0x49, 0]), b"biplane/kid")[:ID]


def message_key(key, nonce):
    """C2SP's XAES-256-GCM: the first half of the nonce goes into the key, and the second half is GCM's nonce."""
    return b"".join(cmac(key, bytes([0, i, ord("X"), 0]), nonce[:12]) for i in (1, 2))


def commitment(key, nonce):
    return b"".join(cmac(key, b"XCMT", nonce, bytes([0, 1, 0, i])) for i in (1, 2))


def length_prefixed(text):
    data = text.encode("utf-8")
    return len(data).to_bytes(2, "big") + data


def additional_data(header, context):
    parts = [length_prefixed(context[name]) for name in ("purpose", "owner", "field")]
    return length_prefixed("biplane.keyring.v1") + header + b"".join(parts)


def seal(key, nonce, context, plaintext):
    header = VERSION_AND_SUITE + key_id(key)
    gcm = AESGCM(message_key(key, nonce))
    ciphertext_and_tag = gcm.encrypt(nonce[12:], plaintext, additional_data(header, context))
    return header + nonce + ciphertext_and_tag + commitment(key, nonce)


def open_envelope(key, context, envelope):
    if envelope[:2] != VERSION_AND_SUITE:
        raise Refused("version or suite")
    if len(envelope) < OVERHEAD:
        raise Refused("too short")
    header, rest = envelope[:10], envelope[10:]
    if header[2:] != key_id(key):
        raise Refused("another key")
    nonce, rest = rest[:NONCE], rest[NONCE:]
    ciphertext_and_tag, given = rest[:-COMMITMENT], rest[-COMMITMENT:]
    if not bytes_eq(given, commitment(key, nonce)):
        raise Refused("commitment")
    try:
        gcm = AESGCM(message_key(key, nonce))
        return gcm.decrypt(nonce[12:], ciphertext_and_tag, additional_data(header, context))
    except InvalidTag:
        raise Refused("tag") from None


def to_text(envelope):
    body = base64.urlsafe_b64encode(envelope[10:]).rstrip(b"=").decode("ascii")
    return f"bp1.{envelope[2:10].hex()}.{body}"


def from_text(text):
    match = re.fullmatch(r"bp1\.([0-9a-f]{16})\.([A-Za-z0-9_-]*)", text, re.ASCII)
    if not match:
        raise Refused("malformed")
    identifier, body = match.groups()
    if len(body) % 4 == 1:
        raise Refused("malformed")
    envelope = VERSION_AND_SUITE + bytes.fromhex(identifier) + base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    if to_text(envelope) != text:
        raise Refused("not canonical")
    return envelope


def answer_to_seal(request):
    envelope = seal(
        bytes.fromhex(request["key"]), bytes.fromhex(request["nonce"]), request, bytes.fromhex(request["plaintext"])
    )
    return {"envelope": envelope.hex(), "text": to_text(envelope)}


def answer_to_open(request):
    try:
        envelope = from_text(request["text"]) if "text" in request else bytes.fromhex(request["envelope"])
        return {"plaintext": open_envelope(bytes.fromhex(request["key"]), request, envelope).hex()}
    except Refused as refused:
        return {"refused": str(refused)}


def check():
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    if not cases:
        sys.exit("there are no golden envelopes")
    for number, case in enumerate(cases):
        sealed = answer_to_seal(case)
        opened = [answer_to_open({**case, "text": case["text"]}), answer_to_open({k: case[k] for k in case if k != "text"})]
        if (
            key_id(bytes.fromhex(case["key"])).hex() != case["key_id"]
            or sealed != {"envelope": case["envelope"], "text": case["text"]}
            or any(answer != {"plaintext": case["plaintext"]} for answer in opened)
        ):
            sys.exit(f"golden envelope {number} differs")
    print(f"{len(cases)} golden envelopes, 0 mismatches")


def main():
    command = sys.argv[1] if len(sys.argv) == 2 else None
    if command == "check":
        check()
    elif command in ("seal", "open"):
        # Bytes, because standard input has the encoding of the locale otherwise.
        requests = json.loads(sys.stdin.buffer.read())
        answer = answer_to_seal if command == "seal" else answer_to_open
        json.dump([answer(request) for request in requests], sys.stdout)
    else:
        sys.exit(__doc__)


main()
