//! TCP ports that nobody else takes.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// Below the ranges from which systems take ports for outgoing connections (32768 on Linux, 49152 on macOS). A port
/// from those could be gone when a stopped server starts again.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// A free TCP port on 127.0.0.1, kept from other clusters and proxies for as long as this value lives, so that what
/// stops listening finds its port free when it listens again.
///
/// What keeps it is the UDP port of the same number: it conflicts with no TCP server, all clusters and proxies of all
/// processes ask for it first, and the system lets go of it however the process ends.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    _reserved: UdpSocket,
}

impl Port {
    /// Picks one at random; none when a thousand picks were all taken.
    pub(super) fn reserve() -> Option<Self> {
        (0..1000).find_map(|_| {
            let random = getrandom::u32().ok()?;
            let span = u32::from(PORTS.end - PORTS.start);
            let offset = u16::try_from(random % span).expect("the span is that of a range of u16");
            Self::at(PORTS.start + offset)
        })
    }

    fn at(number: u16) -> Option<Self> {
        let reserved = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        Some(Self {
            number,
            _reserved: reserved,
        })
    }

    pub(super) const fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_servers_port_is_given_to_nobody_else() {
        let port = Port::reserve().unwrap();
        assert!(Port::at(port.number()).is_none());
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).is_ok());
    }

    #[test]
    fn a_port_in_use_is_not_taken() {
        let taken = (PORTS.start..PORTS.end)
            .find_map(|number| TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok())
            .unwrap();
        assert!(Port::at(taken.local_addr().unwrap().port()).is_none());
    }
}
