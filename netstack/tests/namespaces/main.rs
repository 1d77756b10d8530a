//! Tests of the built `coracle-net` between real namespaces: what a guest, the host and a third
//! party see. One file per subject; `harness` makes the namespaces. See [`harness`] for the
//! environment variables that shape a run.

mod harness;

mod autoconf;
mod behind;
mod capture;
mod closing;
mod dns;
mod floods;
mod haul;
mod hook;
mod hops;
mod icmp;
mod lifecycle;
mod load;
mod names;
mod networks;
mod options;
mod outbound;
mod pasta;
mod pasta_network;
mod policy;
mod ports;
mod published;
mod root;
mod sandbox;
mod slirp4netns;
mod slirp_api;
mod tapfd;
mod udp;
mod veth;

use std::process::ExitCode;

fn main() -> ExitCode {
    let subjects = [
        outbound::CASES,
        published::CASES,
        closing::CASES,
        udp::CASES,
        icmp::CASES,
        hops::CASES,
        dns::CASES,
        policy::CASES,
        ports::CASES,
        ports::pesto::CASES,
        names::CASES,
        networks::CASES,
        options::CASES,
        autoconf::CASES,
        lifecycle::CASES,
        behind::CASES,
        veth::CASES,
        root::CASES,
        sandbox::CASES,
        capture::CASES,
        slirp4netns::CASES,
        slirp_api::CASES,
        tapfd::CASES,
        hook::CASES,
        pasta::CASES,
        pasta_network::CASES,
        load::CASES,
        floods::CASES,
        haul::CASES,
    ];
    harness::run(&subjects.concat())
}
