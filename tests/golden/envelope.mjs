// Envelope version 1, written from the formulas alone, on nothing but Node's block cipher and GCM.
//
//   node tests/golden/envelope.mjs > tests/vectors/envelope-v1.json     the golden envelopes
//   node tests/golden/envelope.mjs open < request.json                  opens one that the crate sealed:
//       {"key": hex, "purpose": …, "owner": …, "field": …, "text": "bp1.…"} → the plaintext in hex
import { createCipheriv, createDecipheriv, createHash } from "node:crypto";
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

function open(key, context, text) {
  const [prefix, id, body] = text.split(".");
  if (prefix !== "bp1" || id !== keyId(key).toString("hex")) throw new Error("another format or another key");
  const envelope = Buffer.from(body, "base64url");
  if (envelope.toString("base64url") !== body || envelope.length < 72) throw new Error("malformed");
  const nonce = envelope.subarray(0, 24);
  const end = envelope.length - 48;
  if (!envelope.subarray(end + 16).equals(commitment(key, nonce))) throw new Error("commitment");
  const gcm = createDecipheriv("aes-256-gcm", messageKey(key, nonce), nonce.subarray(12), { authTagLength: 16 });
  gcm.setAAD(additionalData(key, context));
  gcm.setAuthTag(envelope.subarray(end, end + 16));
  return bytes(gcm.update(envelope.subarray(24, end)), gcm.final());
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

if (process.argv[2] === "open") {
  const { key, text, ...context } = JSON.parse(readFileSync(0, "utf8"));
  console.log(open(Buffer.from(key, "hex"), context, text).toString("hex"));
} else {
  console.log(golden());
}
