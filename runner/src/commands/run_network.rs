//! Which networks a container is in, by what the flags of `run` mean together.

use crate::cli::{NetworkArg, RunNetworkArgs};
use crate::engine::{Attachment, Network};
use crate::failure::Failure;

/// The container's network, and where that is made of networks by their names, those.
pub fn networks(args: &RunNetworkArgs) -> Result<(Network, Vec<Attachment>), Failure> {
    let mut kind = None;
    let mut named: Vec<Attachment> = Vec::new();
    for arg in &args.network {
        match arg {
            NetworkArg::Named(attachments) => named.extend(attachments.iter().cloned()),
            NetworkArg::Own(options) => kind = Some(Network::Coracle(options.clone())),
            NetworkArg::None => kind = Some(Network::None),
            NetworkArg::Host => kind = Some(Network::Host),
        }
    }
    let (ips, mac) = (args.addresses.ips(), args.addresses.mac_address);
    let is_addressed = !ips.is_empty() || mac.is_some();
    if args.network.len() > 1 && kind.is_some() {
        return Err(Failure::runner(
            "several networks are named, and one of them is a kind of network: only those of `coracle network ls` go together",
        ));
    }
    if named.is_empty() {
        if is_addressed || !args.aliases.is_empty() {
            return Err(Failure::runner(
                "--ip, --ip6, --mac-address and --network-alias are about a network that `coracle network create` has made: \
                 --network names it",
            ));
        }
        return Ok((kind.unwrap_or_default(), Vec::new()));
    }
    if is_addressed && named.len() > 1 {
        return Err(Failure::runner(
            "--ip, --ip6 and --mac-address are about one network, and there are several: --network NAME:ip=ADDRESS,mac=ADDRESS says \
             them of each",
        ));
    }
    for attachment in &mut named {
        for ip in &ips {
            let mut others = attachment.ips.iter();
            if others.any(|own| own.is_ipv4() == ip.is_ipv4()) {
                return Err(Failure::runner(format!(
                    "the address in {} is said twice",
                    attachment.network
                )));
            }
            attachment.ips.push(*ip);
        }
        attachment.mac = mac.or(attachment.mac);
        attachment.aliases.extend(args.aliases.iter().cloned());
    }
    Ok((Network::Bridge, named))
}
