// Envelope version 1, written from the formulas of the format's page alone, on nothing but Node's block cipher and GCM.
//
//   node tests/golden/envelope.mjs > tests/vectors/envelope-v1.json   makes the golden envelopes
//   node tests/golden/envelope.mjs check                              recomputes them, and fails unless every byte is the
//                                                                     same
//   node tests/golden/envelope.mjs seal < in.json                     [{"key", "nonce", "purpose", "owner", "field",
//                                                                     "plaintext"}, …] → [{"envelope", "text"}, …]
//   node tests/golden/envelope.mjs open < in.json                     [{"key", "purpose", "owner", "field", "text" or
//                                                                     "envelope"}, …] → [{"plaintext"} or
//                                                                     {"refused": why}, …]
//
// Keys, nonces, plaintexts and envelopes are in hex. Keys come by standard input, because everybody on the machine can
// read the arguments of a program.
import { createCipheriv, createDecipheriv, createHash, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";

const bytes = (...parts) => Buffer.concat(parts.map((p) => (typeof p === "string" ? Buffer.from(p, "utf8") : Buffer.from(p))));
const xor = (a, b) => Buffer.from(a.map((x, i) => x ^ b[i]));

function encryptBlock(key, block) {
  const cipher = createCipheriv("aes-256-ecb", key, null).setAutoPadding(false);
  return Buffer.concat([cipher.update(block), cipher.final()]);
}

// NIST SP 800-38B.
function double(block) {
  const out = Buffer.alloc(16);
  for (let i = 0; i < 16; i++) out[i] = ((block[i] << 1) | (i < 15 ? block[i + 1] >> 7 : 0)) & 0xff;
  if (block[0] & 0x80) out[15] ^= 0x87;
  return out;
}

function cmac(key, message) {
  const k1 = double(encryptBlock(key, Buffer.alloc(16)));
  const blocks = Math.max(1, Math.ceil(message.length / 16));
  const complete = message.length > 0 && message.length % 16 === 0;
  const start = 16 * (blocks - 1);
  let last = message.subarray(start);
  last = complete ? xor(last, k1) : xor(bytes(last, [0x80], Buffer.alloc(15 - last.length)), double(k1));
  let state = Buffer.alloc(16);
  for (let i = 0; i < start; i += 16) state = encryptBlock(key, xor(state, message.subarray(i, i + 16)));
  return encryptBlock(key, xor(state, last));
}

const keyId = (key) => cmac(key, bytes([0, 1, 0x49, 0], "biplane/kid")).subarray(0, 8);

// C2SP XAES-256-GCM: the key for AES-256-GCM comes from the first half of the nonce, its nonce is the second.
const messageKey = (key, nonce) =>
  bytes(...[1, 2].map((i) => cmac(key, bytes([0, i, 0x58, 0], nonce.subarray(0, 12)))));

const commitment = (key, nonce) => bytes(...[1, 2].map((i) => cmac(key, bytes("XCMT", nonce, [0, 1, 0, i]))));

function lengthPrefixed(text) {
  const body = bytes(text);
  const length = Buffer.alloc(2);
  length.writeUInt16BE(body.length);
  return bytes(length, body);
}

const header = (key) => bytes([1, 1], keyId(key));
const additionalData = (key, { purpose, owner, field }) =>
  bytes(lengthPrefixed("biplane.keyring.v1"), header(key), ...[purpose, owner, field].map(lengthPrefixed));

function seal(key, nonce, context, plaintext) {
  const gcm = createCipheriv("aes-256-gcm", messageKey(key, nonce), nonce.subarray(12), { authTagLength: 16 });
  gcm.setAAD(additionalData(key, context));
  const ciphertext = bytes(gcm.update(plaintext), gcm.final());
  return bytes(header(key), nonce, ciphertext, gcm.getAuthTag(), commitment(key, nonce));
}

const toText = (envelope) =>
  `bp1.${envelope.subarray(2, 10).toString("hex")}.${envelope.subarray(10).toString("base64url")}`;

class Refused extends Error {}

function fromText(text) {
  const match = /^bp1\.([0-9a-f]{16})\.([A-Za-z0-9_-]*)$/.exec(text);
  if (!match) throw new Refused("malformed");
  const envelope = bytes([1, 1], Buffer.from(match[1], "hex"), Buffer.from(match[2], "base64url"));
  if (toText(envelope) !== text) throw new Refused("not canonical");
  return envelope;
}

function open(key, context, envelope) {
  if (envelope.length < 2 || envelope[0] !== 1 || envelope[1] !== 1) throw new Refused("version or suite");
  if (envelope.length < 82) throw new Refused("too short");
  if (!envelope.subarray(0, 10).equals(header(key))) throw new Refused("another key");
  const nonce = envelope.subarray(10, 34);
  const end = envelope.length - 48;
  if (!timingSafeEqual(envelope.subarray(end + 16), commitment(key, nonce))) throw new Refused("commitment");
  const gcm = createDecipheriv("aes-256-gcm", messageKey(key, nonce), nonce.subarray(12), { authTagLength: 16 });
  gcm.setAAD(additionalData(key, context));
  gcm.setAuthTag(envelope.subarray(end, end + 16));
  const opened = gcm.update(envelope.subarray(34, end));
  try {
    return bytes(opened, gcm.final());
  } catch {
    throw new Refused("tag");
  }
}

// Reproducible inputs: SHA-256 of a label and a number, repeated as far as needed.
function derived(label, index, length) {
  const parts = [];
  for (let i = 0; 32 * i < length; i++) parts.push(createHash("sha256").update(`${label}/${index}/${i}`).digest());
  return Buffer.concat(parts).subarray(0, length);
}

const contexts = [
  { purpose: "credential", owner: "018f4e7a-5c1b-7cc0-8000-2f6a3c1d9e57", field: "app" },
  { purpose: "credential", owner: "b1b10000-0000-8000-8000-000000000001", field: "read_only" },
  { purpose: "", owner: "", field: "" },
  { purpose: "setting", owner: "ab", field: "c" },
  { purpose: "setting", owner: "a", field: "bc" },
  { purpose: "настройка", owner: "арендатор-🔑", field: "ключ" },
  { purpose: "p".repeat(300), owner: "o".repeat(1000), field: "f".repeat(257) },
];
const lengths = [0, 1, 2, 3, 11, 15, 16, 17, 31, 32, 33, 47, 48, 49, 127, 128, 129, 255, 512, 4096];

function golden() {
  const cases = lengths.map((length, index) => {
    const key = derived("key", index % 5, 32);
    const nonce = derived("nonce", index, 24);
    const context = contexts[index % contexts.length];
    const plaintext = derived("plaintext", index, length);
    const envelope = seal(key, nonce, context, plaintext);
    return {
      key: key.toString("hex"), key_id: keyId(key).toString("hex"), nonce: nonce.toString("hex"), ...context,
      plaintext: plaintext.toString("hex"), envelope: envelope.toString("hex"), text: toText(envelope),
    };
  });
  return JSON.stringify({ source: "tests/golden/envelope.mjs", cases }, null, 1);
}

const unhex = (text) => Buffer.from(text, "hex");

function answerToSeal(request) {
  const envelope = seal(unhex(request.key), unhex(request.nonce), request, unhex(request.plaintext));
  return { envelope: envelope.toString("hex"), text: toText(envelope) };
}

function answerToOpen(request) {
  try {
    const envelope = "text" in request ? fromText(request.text) : unhex(request.envelope);
    return { plaintext: open(unhex(request.key), request, envelope).toString("hex") };
  } catch (error) {
    if (error instanceof Refused) return { refused: error.message };
    throw error;
  }
}

function check() {
  const file = new URL("../vectors/envelope-v1.json", import.meta.url);
  const text = readFileSync(file, "utf8");
  if (text.trimEnd() !== golden()) throw new Error("the golden envelopes are others than this script makes");
  const { cases } = JSON.parse(text);
  for (const [number, { text, ...rest }] of cases.entries()) {
    for (const request of [{ text, ...rest, envelope: undefined }, rest]) {
      if (answerToOpen(request).plaintext !== rest.plaintext) throw new Error(`golden envelope ${number} does not open`);
    }
  }
  console.log(`${cases.length} golden envelopes, 0 mismatches`);
}

const requests = () => JSON.parse(readFileSync(0, "utf8"));
const commands = {
  golden: () => console.log(golden()),
  check,
  seal: () => console.log(JSON.stringify(requests().map(answerToSeal))),
  open: () => console.log(JSON.stringify(requests().map(answerToOpen))),
};
const command = commands[process.argv[2] ?? "golden"];
if (!command || process.argv.length > 3) {
  console.error("usage: node tests/golden/envelope.mjs [golden | check | seal | open]; see the head of the file");
  process.exit(2);
}
command();
