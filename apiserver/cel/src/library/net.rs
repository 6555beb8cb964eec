//! Addresses and networks.

use super::{Called, no_overload};
use crate::value::Value;
use ipnet::IpNet;
use keelson_api::field::quote;
use std::net::IpAddr;

fn address(text: &str) -> Result<IpAddr, String> {
    let wrong =
        |why: &str| format!("IP Address {} parse error during conversion from string: {why}", quote(text));
    if text.contains('%') {
        return Err(wrong("IP address with zone value is not allowed"));
    }
    let parsed: IpAddr =
        text.parse().map_err(|_| wrong(&format!("ParseAddr({}): unable to parse IP", quote(text))))?;
    match parsed {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(wrong("IPv4-mapped IPv6 address is not allowed"))
        }
        _ => Ok(parsed),
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let wrong = || {
        format!(
            "network address parse error during conversion from string: netip.ParsePrefix({}): invalid",
            quote(text)
        )
    };
    let parsed: IpNet = text.parse().map_err(|_| wrong())?;
    match parsed {
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => {
            Err("IPv4-mapped IPv6 address is not allowed".to_owned())
        }
        _ => Ok(parsed),
    }
}

/// `ip`, `cidr` and their tests.
pub fn make(function: &str, args: &[Value]) -> Called {
    let [Value::String(text)] = args else { return no_overload() };
    match function {
        "ip" => address(text).map(Value::Ip),
        "isIP" => Ok(Value::Bool(address(text).is_ok())),
        "cidr" => network(text).map(Value::Cidr),
        _ => Ok(Value::Bool(network(text).is_ok())),
    }
}

/// `ip.isCanonical`.
pub fn is_canonical(args: &[Value]) -> Called {
    let [Value::String(text)] = args else { return no_overload() };
    Ok(Value::Bool(address(text)?.to_string() == **text))
}

/// Runs a member of an address.
pub fn ip(function: &str, ip: IpAddr) -> Called {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    Ok(match function {
        "family" => Value::Int(if ip.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Value::Bool(ip.is_unspecified()),
        "isLoopback" => Value::Bool(ip.is_loopback()),
        "isLinkLocalUnicast" => Value::Bool(link_local),
        "isLinkLocalMulticast" => Value::Bool(match ip {
            IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
            IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
        }),
        "isGlobalUnicast" => {
            let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
            let special =
                ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local || broadcast;
            Value::Bool(!special)
        }
        _ => return no_overload(),
    })
}

/// Runs a member of a network.
pub fn cidr(function: &str, cidr: IpNet, args: &[Value]) -> Called {
    Ok(match (function, args) {
        ("ip", []) => Value::Ip(cidr.addr()),
        ("prefixLength", []) => Value::Int(i64::from(cidr.prefix_len())),
        ("masked", []) => Value::Cidr(cidr.trunc()),
        ("containsIP", [Value::Ip(ip)]) => Value::Bool(cidr.contains(ip)),
        ("containsIP", [Value::String(text)]) => Value::Bool(cidr.contains(&address(text)?)),
        ("containsCIDR", [Value::Cidr(other)]) => Value::Bool(cidr.contains(other)),
        ("containsCIDR", [Value::String(text)]) => Value::Bool(cidr.contains(&network(text)?)),
        _ => return no_overload(),
    })
}
