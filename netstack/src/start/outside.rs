//! What needs the caller's IDs, files and network namespace: opened before the guest is entered.

use std::path::Path;

use portfwd::Direction;

use super::StartError;
use crate::broker::Broker;
use crate::companion::{Companion, Resolvers};
use crate::config::Config;
use crate::control::{Form, PortControl, SlirpApi, StatusSocket};
use crate::host::RESOLV_CONF;
use crate::netlink::ListeningSockets;

/// What is made with the caller's rights, or keeps some of them.
pub struct Outside {
    pub status: Vec<StatusSocket>,
    pub slirp_api: Option<(SlirpApi, Broker)>,
    pub port_control: Option<PortControl>,
    /// For forwarded ports.
    pub broker: Option<Broker>,
    /// Who listens on the host, where ports of the guest follow that.
    pub listening: Option<ListeningSockets>,
    pub companion: Companion,
}

impl Outside {
    /// To be called with one thread, the caller's IDs and no namespace of the guest's.
    pub fn open(config: &Config) -> Result<Self, StartError> {
        let status = [
            (Form::Document, &config.status_socket),
            (Form::Metrics, &config.metrics_socket),
        ];
        let status = status
            .into_iter()
            .filter_map(|(form, path)| Some(StatusSocket::open(form, path.as_deref()?)))
            .collect::<Result<Vec<_>, _>>()?;
        let slirp_api = config
            .api_socket
            .as_deref()
            .map(|path| SlirpApi::open(path, config.network.addresses().guest))
            .transpose()?;
        let port_control = config
            .forwards
            .control_socket
            .as_deref()
            .map(PortControl::open)
            .transpose()?;
        let files = [
            slirp_api.as_ref().map(SlirpApi::file),
            port_control.as_ref().map(PortControl::file),
        ];
        let files = files.into_iter().flatten();
        let files = files.chain(status.iter().map(StatusSocket::file)).collect();
        let start_broker = || Broker::start().map_err(StartError::Broker);
        let slirp_api = slirp_api
            .map(|socket| Ok::<_, StartError>((socket, start_broker()?)))
            .transpose()?;
        let opens_later = config.forwards.may_open(Direction::Inbound);
        let broker = opens_later.then(start_broker).transpose()?;
        let follows = config.forwards.may_open(Direction::Outbound);
        let listening = follows.then(ListeningSockets::open).transpose();
        let listening = listening.map_err(StartError::Listening)?;
        let resolvers = match &config.resolvers[..] {
            [] => Resolvers::Of(Path::new(RESOLV_CONF)),
            these => Resolvers::These(these.to_vec()),
        };
        let companion = Companion::start(resolvers, files).map_err(StartError::Companion)?;
        Ok(Self {
            status,
            slirp_api,
            port_control,
            broker,
            listening,
            companion,
        })
    }
}
