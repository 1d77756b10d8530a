//! The core's part of names that the engine has handed over: whom they are answered to, and by
//! which way.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Carrier, HostName, HostNameError, HostNames, answer, is_query};
use crate::core::Core;
use crate::core::flow::{FlowId, Protocol};
use crate::core::link::{Hardware, Link};
use crate::core::policy::Verdict;
use crate::core::tcp::{Phase, TcpFlow};

/// A connection of the guest's to the forwarder, some queries of which are answered by names.
#[derive(Clone, Debug)]
pub struct NamedQueries {
    pub names: Arc<HostNames>,
    /// Who asks.
    pub asker: IpAddr,
}

impl Core {
    /// The names that the engine has handed over.
    pub fn names(&self) -> &HostNames {
        &self.names
    }

    /// Hands names over, in place of all others. Connections that ask already know the old ones.
    pub fn set_names(&mut self, names: HostNames) {
        self.names = Arc::new(names);
    }

    /// As [`HostNames::add`].
    pub fn add_name(&mut self, name: HostName) -> Result<u64, HostNameError> {
        Arc::make_mut(&mut self.names).add(name)
    }

    /// As [`HostNames::remove`].
    pub fn remove_name(&mut self, id: u64) -> bool {
        Arc::make_mut(&mut self.names).remove(id)
    }

    /// What it takes to answer queries of flow `id` by names. `None` if it carries none, or there
    /// is no name.
    pub fn named_queries(&self, id: FlowId) -> Option<NamedQueries> {
        let tuple = self.flows.tuple(id)?;
        let asks = tuple
            .remote
            .is_some_and(|remote| self.is_forwarder(Protocol::Tcp, remote));
        (asks && !self.names.is_empty()).then(|| NamedQueries {
            names: self.names.clone(),
            asker: tuple.guest.ip(),
        })
    }

    /// The resolver could not be connected to that flow `id` was to go to, which goes on by names
    /// alone.
    pub fn resolver_failed(&mut self, id: FlowId) {
        if let Some(Phase::Dialling { to, .. }) = self.flows.tcp(id).map(TcpFlow::phase) {
            self.forwarder.dial_failed(*to);
        }
    }

    /// Whether queries are sent to `remote`.
    pub(in crate::core) fn is_forwarder(&self, protocol: Protocol, remote: SocketAddr) -> bool {
        is_query(protocol, remote.port()) && self.config.addresses.is_dns(remote.ip())
    }

    /// Answers `queries` of the guest's, all by names, or none. False if a resolver has to.
    pub(in crate::core) fn answer_queries<'q>(
        &mut self,
        guest: SocketAddr,
        forwarder: SocketAddr,
        queries: impl Iterator<Item = &'q [u8]>,
        hardware: Hardware,
        link: &mut impl Link,
    ) -> bool {
        if self.names.is_empty()
            || !self.is_forwarder(Protocol::Udp, forwarder)
            || self.judge(Protocol::Udp, forwarder) != Verdict::Resolve
        {
            return false;
        }
        let answers = queries.map(|query| answer(query, Carrier::Udp, &self.names, guest.ip()));
        let answers = answers.collect::<Option<Vec<_>>>();
        let Some(answers) = answers.filter(|answers| !answers.is_empty()) else {
            return false;
        };
        for answer in answers {
            self.counters.names_answered += 1;
            hardware.send_udp(link, forwarder, guest, &answer, None);
        }
        true
    }

    /// A connection that asks was answered by names so many times more.
    pub fn names_answered(&mut self, count: u64) {
        self.counters.names_answered += count;
    }
}
