//! ServiceCIDRs and IPAddresses.

use super::Strategy;
use crate::context::Target;
use crate::meta::NameCheck;
use crate::value::{at, items, text};
use keelson_api::field::quote;
use keelson_api::{ErrorList, FieldError, Path, names};
use serde_json::Value;

pub struct ServiceCidrs;

impl Strategy for ServiceCidrs {
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec").child("cidrs");
        let list = items(object, "spec.cidrs");
        // Taking them away is reported as a change.
        if list.is_empty() && text(object, "metadata.resourceVersion").is_empty() {
            errors.push(FieldError::required(&path, "at least one CIDR required"));
        }
        if list.len() > 2 {
            let detail = "may only hold up to 2 values";
            errors.push(FieldError::invalid(&path, list.to_vec(), detail));
        }
        let mut families = vec![];
        for (i, item) in list.iter().enumerate() {
            let cidr = item.as_str().unwrap_or("");
            match cidr.parse::<ipnet::IpNet>() {
                Err(_) => {
                    let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                    errors.push(FieldError::invalid(&path.index(i), cidr, detail));
                }
                Ok(net) if net.addr() != net.network() => {
                    let detail = "must not have bits set beyond the prefix length";
                    errors.push(FieldError::invalid(&path.index(i), cidr, detail));
                }
                Ok(net) => families.push(net.addr().is_ipv4()),
            }
        }
        if let [a, b] = families.as_slice()
            && a == b
        {
            let detail =
                "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
            errors.push(FieldError::invalid(&path, list.to_vec(), detail));
        }
    }
    fn validate_update(&self, target: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if target.subresource.is_some() {
            return;
        }
        let (old, list) = (items(current, "spec.cidrs"), items(new, "spec.cidrs"));
        let path = Path::new("spec").child("cidrs");
        if list.len() < old.len() {
            errors.push(FieldError::invalid(&path, list.to_vec(), "field is immutable"));
            return;
        }
        for (i, (before, after)) in old.iter().zip(list).enumerate() {
            if before != after {
                errors.push(FieldError::invalid(&path.index(i), after.clone(), "field is immutable"));
            }
        }
    }
}

pub struct IpAddresses;

/// A name is an address in its one canonical form.
fn address(name: &str) -> Vec<String> {
    match name.parse::<std::net::IpAddr>() {
        Ok(ip) if ip.to_string() == name => vec![],
        Ok(ip) => vec![format!("must be in canonical form ({})", quote(&ip.to_string()))],
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
    }
}

impl Strategy for IpAddresses {
    fn name_check(&self) -> NameCheck {
        address
    }
    fn validate(&self, object: &Value, errors: &mut ErrorList) {
        let path = Path::new("spec").child("parentRef");
        let parent = at(object, "spec.parentRef");
        if parent.is_null() {
            errors.push(FieldError::required(&path, ""));
            return;
        }
        let group = text(parent, "group");
        if !group.is_empty() {
            for problem in names::dns1123_subdomain(group) {
                errors.push(FieldError::invalid(&path.child("group"), group, &problem));
            }
        }
        for field in ["resource", "name", "namespace"] {
            let value = text(parent, field);
            if value.is_empty() && field != "namespace" {
                errors.push(FieldError::required(&path.child(field), ""));
            } else if !value.is_empty() {
                for problem in names::path_segment(value) {
                    errors.push(FieldError::invalid(&path.child(field), value, &problem));
                }
            }
        }
    }
    fn validate_update(&self, _: &Target, current: &Value, new: &Value, errors: &mut ErrorList) {
        if at(current, "spec.parentRef") == at(new, "spec.parentRef") {
            return;
        }
        // In the form of upstream's types.
        let field = |f: &str| quote(text(new, &format!("spec.parentRef.{f}")));
        let shown = format!(
            "{{\"Group\":{},\"Resource\":{},\"Namespace\":{},\"Name\":{}}}",
            field("group"),
            field("resource"),
            field("namespace"),
            field("name")
        );
        let path = Path::new("spec").child("parentRef");
        errors.push(FieldError::invalid_shown(&path, &shown, "field is immutable"));
    }
}
