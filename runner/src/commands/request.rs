//! From the flags of `run` and `create` to what the engine is asked for.

use std::collections::BTreeMap;
use std::fs;

use super::env::variables;
use super::run_network::networks;
use super::timezone;
use crate::cli::{
    Cgroups, ContainerArgs, KEEP_GROUPS, SeccompChoice, SecurityOpt, UlimitArg, UserNamespace,
    parse_label,
};
use crate::engine::{ContainerRequest, Source, Unset};
use crate::failure::Failure;
use crate::isolation::capabilities::Capabilities;
use crate::isolation::seccomp::Seccomp;
use crate::process::inherited::SoftLimits;
use crate::rootfs::{Masks, SHM_LEN};
use crate::spec::{ExtraGroups, UMASK, Variable};

/// What the flags ask for.
pub(super) fn request(
    args: &ContainerArgs,
    source: Source,
    remove: bool,
    open_stdin: bool,
    limits: SoftLimits,
) -> Result<ContainerRequest, Failure> {
    let (network, networks) = networks(&args.network)?;
    let proxies = args.http_proxy.then(proxies).into_iter().flatten();
    Ok(ContainerRequest {
        source,
        name: args.name.clone(),
        hostname: args.hostname.clone(),
        labels: labels(args)?,
        network,
        networks,
        names: args.names.names(),
        timezone: args.tz.as_deref().map(timezone::find).transpose()?,
        publish: args.publish.clone(),
        publish_all: args.publish_all,
        volumes: args.tree.volumes(),
        volumes_from: args.tree.volumes_from.clone(),
        image_volumes: args.tree.image_volume,
        expose: args.expose.clone(),
        secrets: args.tree.secrets.clone(),
        tmpfs: args.tree.tmpfs(),
        devices: args.tree.devices.clone(),
        shm_len: args.tree.shm_size.unwrap_or(SHM_LEN),
        read_only: args.tree.read_only,
        read_only_tmpfs: args.tree.read_only_tmpfs,
        host_root: args.userns == UserNamespace::Host,
        remove,
        lifetime: args.lifetime.lifetime(),
        health: args.health.request().map_err(Failure::runner)?,
        log: args.log.config().map_err(Failure::runner)?,
        stop_signal: args.stop_signal,
        env: proxies.chain(variables(&args.process)?).collect(),
        env_below: match args.env_host {
            true => std::env::vars_os().collect(),
            false => Vec::new(),
        },
        unset: match args.unset_all {
            true => Unset::All,
            false => Unset::Names(args.unset.clone()),
        },
        entrypoint: args.entrypoint.clone().map(|entrypoint| entrypoint.0),
        workdir: args.process.workdir.clone(),
        user: args.process.user.clone(),
        terminal: args.process.tty,
        open_stdin,
        init: args.init,
        masks: masks(args),
        privileged: args.privileged,
        capabilities: capabilities(args),
        no_new_privs: no_new_privs(&args.security_opt),
        seccomp: seccomp(args)?,
        limits: match args.kernel.ulimits.contains(&UlimitArg::Host) {
            true => limits,
            false => limits.with_open_files_raised(),
        },
        ulimits: args.kernel.ulimits(),
        sysctls: args.kernel.sysctls.clone(),
        own_cgroups: args.cgroups == Cgroups::Enabled,
        resources: args.limits.resources(),
        umask: args.kernel.umask.unwrap_or(UMASK),
        oom_score_adj: args.kernel.oom_score_adj,
        groups: match &args.kernel.groups[..] {
            [group] if group == KEEP_GROUPS => ExtraGroups::Callers,
            groups => ExtraGroups::Named(groups.to_vec()),
        },
    })
}

/// Those of files, and over them those of the command line.
fn labels(args: &ContainerArgs) -> Result<BTreeMap<String, String>, Failure> {
    let mut labels = BTreeMap::new();
    for path in &args.label_files {
        let shown = path.display();
        let failed = Failure::context(format!("cannot read the labels in {shown}"));
        let text = fs::read_to_string(path).map_err(failed)?;
        for line in text.lines().map(str::trim) {
            if !line.is_empty() && !line.starts_with('#') {
                let label = parse_label(line);
                let label = label.map_err(|error| Failure::runner(format!("{shown}: {error}")))?;
                labels.extend([label]);
            }
        }
    }
    labels.extend(args.labels.iter().cloned());
    Ok(labels)
}

/// What is said last counts, here and below.
fn no_new_privs(options: &[SecurityOpt]) -> bool {
    let said = options.iter().rev().find_map(|option| match option {
        SecurityOpt::NoNewPrivileges(on) => Some(*on),
        _ => None,
    });
    said.unwrap_or(false)
}

fn capabilities(args: &ContainerArgs) -> Capabilities {
    let usual = match args.privileged {
        true => Capabilities::ALL,
        false => Capabilities::DEFAULT,
    };
    usual.adjusted(&args.cap_add, &args.cap_drop)
}

fn masks(args: &ContainerArgs) -> Masks {
    let mut masks = match args.privileged {
        true => Masks::none(),
        false => Masks::default(),
    };
    for option in &args.security_opt {
        match option {
            SecurityOpt::Mask(paths) => masks.covered.extend(paths.iter().cloned()),
            SecurityOpt::Unmask(uncovered) => masks.uncover(uncovered),
            _ => {}
        }
    }
    masks
}

fn seccomp(args: &ContainerArgs) -> Result<Seccomp, Failure> {
    let said = args
        .security_opt
        .iter()
        .rev()
        .find_map(|option| match option {
            SecurityOpt::Seccomp(choice) => Some(choice),
            _ => None,
        });
    Ok(match said {
        None if args.privileged => Seccomp::Unconfined,
        None | Some(SeccompChoice::Default) => Seccomp::Default,
        Some(SeccompChoice::Unconfined) => Seccomp::Unconfined,
        Some(SeccompChoice::File(path)) => Seccomp::from_file(path)?,
    })
}

/// The caller's proxies, which programs in the container need as much.
fn proxies() -> impl Iterator<Item = Variable> {
    const NAMES: [&str; 8] = [
        "http_proxy",
        "https_proxy",
        "ftp_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "FTP_PROXY",
        "NO_PROXY",
    ];
    NAMES
        .into_iter()
        .filter_map(|name| Some((name.into(), std::env::var_os(name)?)))
}
