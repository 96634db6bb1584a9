//! Strict decoders. None of them repairs its input, and each value has one spelling.

/// The text is not in the encoding.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadEncoding;

/// Decodes hexadecimal digits of either case into exactly `out`. No table and no branch depends on the digits,
/// because they may be a key.
pub(super) fn hex(text: &[u8], out: &mut [u8]) -> Result<(), BadEncoding> {
    if text.len() != 2 * out.len() {
        return Err(BadEncoding);
    }
    let mut bad = 0;
    for (pair, byte) in text.chunks_exact(2).zip(out) {
        let (high, low) = (nibble(pair[0]), nibble(pair[1]));
        bad |= high | low;
        *byte = (high << 4 | low & 0xf) as u8;
    }
    if bad < 0 { Err(BadEncoding) } else { Ok(()) }
}

/// The value of a hexadecimal digit, or -1.
fn nibble(digit: u8) -> i16 {
    let digit = i16::from(digit);
    // Each mask is -1 where the digit lies strictly between the two bounds and 0 elsewhere.
    let within = |below: i16, above: i16| ((below - digit) & (digit - above)) >> 8;
    -1 + (within(0x2f, 0x3a) & (digit - 0x2f))
        + (within(0x60, 0x67) & (digit - 0x56))
        + (within(0x40, 0x47) & (digit - 0x36))
}

/// Writes lower-case hexadecimal digits.
pub(super) fn write_hex(bytes: &[u8], out: &mut [u8]) {
    debug_assert_eq!(out.len(), 2 * bytes.len());
    for (byte, pair) in bytes.iter().zip(out.chunks_exact_mut(2)) {
        pair[0] = hex_digit(byte >> 4);
        pair[1] = hex_digit(byte & 0xf);
    }
}

/// The digit of a value up to 15, without a table.
fn hex_digit(value: u8) -> u8 {
    let letter = (9_i16 - i16::from(value)) >> 8;
    b'0' + value + (letter as u8 & (b'a' - b'0' - 10))
}

/// A bit above the 24 that a group stands for.
const NOT_BASE64URL: u32 = 1 << 24;

/// What a character stands for at each place of a group of four.
static BASE64URL: [[u32; 256]; 4] = {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut tables = [[NOT_BASE64URL; 256]; 4];
    let mut place = 0;
    while place < 4 {
        let mut value = 0;
        while value < alphabet.len() {
            tables[place][alphabet[value] as usize] = (value as u32) << (18 - 6 * place);
            value += 1;
        }
        place += 1;
    }
    tables
};

/// How many bytes so many characters of unpadded base64 stand for. One character over a group of four stands for
/// nothing.
pub(super) fn base64url_len(characters: usize) -> Option<usize> {
    match characters % 4 {
        1 => None,
        rest => Some(characters / 4 * 3 + rest.saturating_sub(1)),
    }
}

/// Decodes unpadded base64url (RFC 4648, section 5) into exactly `out`, and refuses trailing bits that are not zero.
///
/// It looks values up in a table, for speed; so it is for what is sealed, never for a key.
pub(super) fn base64url(text: &[u8], out: &mut [u8]) -> Result<(), BadEncoding> {
    if base64url_len(text.len()) != Some(out.len()) {
        return Err(BadEncoding);
    }
    let (groups, rest) = text.as_chunks::<4>();
    let (triples, last) = out.as_chunks_mut::<3>();
    let mut bad = 0;
    for (group, triple) in groups.iter().zip(triples) {
        let value = value_of(*group);
        bad |= value;
        let [_, a, b, c] = value.to_be_bytes();
        *triple = [a, b, c];
    }
    bad &= NOT_BASE64URL;
    // `A` stands for nothing but zero bits, and so may fill the last group; the bits that it leaves over must be zero.
    match (rest, last) {
        ([], []) => {}
        (&[a, b], [first]) => {
            let value = value_of([a, b, b'A', b'A']);
            bad |= value & (NOT_BASE64URL | 0xffff);
            *first = (value >> 16) as u8;
        }
        (&[a, b, c], [first, second]) => {
            let value = value_of([a, b, c, b'A']);
            bad |= value & (NOT_BASE64URL | 0xff);
            *first = (value >> 16) as u8;
            *second = (value >> 8) as u8;
        }
        _ => return Err(BadEncoding),
    }
    if cfg!(biplane_mutant = "spare_bits_pass") {
        bad &= NOT_BASE64URL;
    }
    if bad == 0 { Ok(()) } else { Err(BadEncoding) }
}

/// The 24 bits of a group, and [`NOT_BASE64URL`] if one of its characters is none of the alphabet.
#[inline(always)]
fn value_of(group: [u8; 4]) -> u32 {
    let [a, b, c, d] = group.map(usize::from);
    BASE64URL[0][a] | BASE64URL[1][b] | BASE64URL[2][c] | BASE64URL[3][d]
}

#[cfg(test)]
mod tests {
    use base64ct::{Base64UrlUnpadded, Encoding};
    use proptest::prelude::*;

    use super::*;

    fn ours(text: &[u8]) -> Result<Vec<u8>, BadEncoding> {
        let mut out = vec![0; base64url_len(text.len()).ok_or(BadEncoding)?];
        base64url(text, &mut out).map(|()| out)
    }

    fn theirs(text: &[u8]) -> Result<Vec<u8>, BadEncoding> {
        let mut out = vec![0; text.len()];
        let decoded = Base64UrlUnpadded::decode(text, &mut out).map_err(|_| BadEncoding)?;
        Ok(decoded.to_vec())
    }

    #[test]
    fn every_short_text_decodes_as_an_independent_decoder_says() {
        for a in 0..=255 {
            assert_eq!(ours(&[a]), theirs(&[a]));
            for b in 0..=255 {
                assert_eq!(ours(&[a, b]), theirs(&[a, b]), "{a} {b}");
                assert_eq!(ours(&[b'A', a, b]), theirs(&[b'A', a, b]), "{a} {b}");
                assert_eq!(ours(&[a, b'A', b'-', b]), theirs(&[a, b'A', b'-', b]), "{a} {b}");
                assert_eq!(ours(&[b'_', a, b, b'z']), theirs(&[b'_', a, b, b'z']), "{a} {b}");
            }
        }
    }

    #[test]
    fn every_pair_of_characters_is_hex_exactly_if_both_are_digits() {
        for a in 0..=255_u8 {
            for b in 0..=255_u8 {
                let expected = std::str::from_utf8(&[a, b])
                    .ok()
                    .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .and_then(|text| u8::from_str_radix(text, 16).ok());
                let mut out = [0];
                assert_eq!(hex(&[a, b], &mut out).ok().map(|()| out[0]), expected, "{a} {b}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(ours(Base64UrlUnpadded::encode_string(&bytes).as_bytes()), Ok(bytes.clone()));
            let mut text = vec![0; 2 * bytes.len()];
            write_hex(&bytes, &mut text);
            prop_assert!(text.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')));
            let mut back = vec![0; bytes.len()];
            prop_assert_eq!(hex(&text, &mut back), Ok(()));
            prop_assert_eq!(back, bytes);
        }

        #[test]
        fn almost_base64_decodes_as_an_independent_decoder_says(text in "[A-Za-z0-9_=+/-]{0,40}") {
            prop_assert_eq!(ours(text.as_bytes()), theirs(text.as_bytes()));
        }
    }
}
