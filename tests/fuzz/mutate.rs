//! Mutations of seeds, the same for the same number to begin with.

pub(crate) struct Mutator {
    state: u64,
    words: &'static [&'static str],
    pool: Vec<Vec<u8>>,
}

/// Longer inputs find nothing that shorter ones do not, and take longer.
const LONGEST: usize = 8 * 1024;

impl Mutator {
    pub(crate) fn new(random: u64, words: &'static [&'static str], pool: Vec<Vec<u8>>) -> Self {
        Self {
            state: random,
            words,
            pool,
        }
    }

    pub(crate) fn add(&mut self, input: Vec<u8>) {
        self.pool.push(input);
    }

    /// A seed with one change, or a few.
    pub(crate) fn next_input(&mut self) -> Vec<u8> {
        let mut input = self.any_seed();
        loop {
            self.change(&mut input);
            if self.below(3) != 0 {
                break;
            }
        }
        input.truncate(LONGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let (from, to) = self.range(input.len());
        match self.below(12) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.byte(),
            // A neighbour: the next digit, the next character of an alphabet.
            2 if at < input.len() => {
                input[at] = input[at].wrapping_add(if self.below(2) == 0 { 1 } else { 255 })
            }
            3 => input.insert(at, self.byte()),
            4 => drop(input.drain(from..to)),
            5 => {
                let piece = input[from..to].to_vec();
                input.splice(at..at, piece);
            }
            6 => input.truncate(at),
            7 => {
                let word = self.word();
                input.splice(at..at, word);
            }
            8 => {
                let word = self.word();
                input.splice(from..to, word);
            }
            9 => input[from..to].make_ascii_uppercase(),
            10 => {
                // The head of one and the tail of another.
                let other = self.any_seed();
                let cut = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[cut..]);
            }
            _ => self.exchange_a_segment(input),
        }
    }

    /// Puts a part of another seed, between two separators, in the place of one of this.
    fn exchange_a_segment(&mut self, input: &mut Vec<u8>) {
        let other = self.any_seed();
        let (from, to) = self.segment(input);
        let (other_from, other_to) = self.segment(&other);
        input.splice(from..to, other[other_from..other_to].iter().copied());
    }

    fn segment(&mut self, input: &[u8]) -> (usize, usize) {
        let is_separator = |byte: &u8| b".:,\"{}\n".contains(byte);
        let at = self.below(input.len() + 1);
        let from = input[..at]
            .iter()
            .rposition(is_separator)
            .map_or(0, |before| before + 1);
        let to = input[at..]
            .iter()
            .position(is_separator)
            .map_or(input.len(), |after| at + after);
        (from, to)
    }

    fn any_seed(&mut self) -> Vec<u8> {
        let index = self.below(self.pool.len());
        self.pool[index].clone()
    }

    fn word(&mut self) -> Vec<u8> {
        let index = self.below(self.words.len());
        self.words[index].as_bytes().to_vec()
    }

    fn byte(&mut self) -> u8 {
        const USUAL: &[u8] = b"0123456789abcdefABCDEF+/-_=.:,";
        match self.below(4) {
            0 => self.below(256) as u8,
            _ => USUAL[self.below(USUAL.len())],
        }
    }

    /// Short ones are likelier.
    fn range(&mut self, length: usize) -> (usize, usize) {
        let from = self.below(length + 1);
        let most = match self.below(3) {
            0 => length - from,
            _ => (length - from).min(8),
        };
        (from, from + self.below(most + 1))
    }

    /// SplitMix64.
    fn below(&mut self, bound: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}
