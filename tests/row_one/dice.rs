//! Chance that can be repeated.

use std::time::Duration;

/// Numbers without a pattern that matters (xorshift64*, Vigna 2014), the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds are not to begin alike, and 0 stays 0 for ever.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(mixed).unwrap() % sides
    }

    pub(crate) fn choose<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.roll(among.len())]
    }

    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            let other = self.roll(last + 1);
            list.swap(last, other);
        }
    }

    /// Lets others go first, now and then for long.
    pub(crate) async fn dawdle(&mut self) {
        match self.roll(8) {
            0..4 => {}
            4..7 => tokio::time::sleep(Duration::from_micros(self.roll(3_000) as u64)).await,
            _ => tokio::time::sleep(Duration::from_millis(self.roll(40) as u64)).await,
        }
    }
}
