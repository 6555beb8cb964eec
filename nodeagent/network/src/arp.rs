//! Gratuitous ARP: tells the neighbours that an address moved here.
//!
//! Hazard: the frame goes to a link-layer address taken from the interface list (that is where the interface's index
//! comes from), because building one would need unsafe code.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};

/// An Ethernet ARP frame: header 14 bytes, packet 28.
fn frame(mac: [u8; 6], address: Ipv4Addr, reply: bool) -> [u8; 42] {
    const BROADCAST: [u8; 6] = [0xff; 6];
    let mut frame = [0u8; 42];
    frame[..6].copy_from_slice(&BROADCAST);
    frame[6..12].copy_from_slice(&mac);
    // Ethertype ARP; hardware Ethernet, protocol IPv4, lengths 6 and 4.
    frame[12..20].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4]);
    frame[20..22].copy_from_slice(&[0, if reply { 2 } else { 1 }]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&address.octets());
    frame[32..38].copy_from_slice(if reply { &BROADCAST } else { &[0; 6] });
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

/// Sends a request and a reply: some neighbours learn from one only, some from the other.
///
/// # Errors
/// When the interface has no link-layer address or the process may not open a packet socket.
pub fn announce(interface: &str, address: Ipv4Addr) -> Result<()> {
    let link = getifaddrs()
        .context("list interfaces")?
        .filter(|found| found.interface_name == interface)
        .find_map(|found| found.address?.as_link_addr().copied())
        .with_context(|| format!("interface {interface} has no link-layer address"))?;
    let mac = link.addr().with_context(|| format!("interface {interface} has no link-layer address"))?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .context("open a packet socket: needs CAP_NET_RAW")?;
    for reply in [false, true] {
        sendto(socket.as_raw_fd(), &frame(mac, address, reply), &link, MsgFlags::empty())
            .context("send ARP")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_names_sender_and_target_alike() {
        let frame = frame([2, 0, 0, 0, 0, 7], Ipv4Addr::new(172, 30, 0, 200), false);
        assert_eq!(&frame[12..22], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], "an ARP request");
        assert_eq!(frame[28..32], frame[38..42], "gratuitous: both addresses are the same");
        assert_eq!(&frame[6..12], &frame[22..28], "from the interface's own address");
    }
}
