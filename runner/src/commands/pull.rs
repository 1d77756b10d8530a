//! `coracle pull`, and what `run` pulls.

use super::progress::progress;
use super::{for_each, open_engine, print_line, short_names};
use crate::cli::{AccessArgs, PullArgs, PullPolicy, RegistryArgs, TlsArgs};
use crate::engine::{
    Access, Engine, Image, ImageName, ImageRef, ImageStore, Place, PullRequest, Registries,
};
use crate::failure::{Failure, chain};
use crate::images::error::StorageError;
use crate::process::foreground::warn;

pub fn pull(args: PullArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let store = engine.images()?;
    let mut request = request(&args.registry);
    request.access.credentials.clone_from(&args.creds);
    for_each(&args.images, |name| {
        if let Some(place) = Place::parse(name) {
            let images = store.load(&place, &mut warn)?;
            return images
                .iter()
                .try_for_each(|image| print_line(image.id.hex()));
        }
        let places = short_names::remotes(name.parse()?)?;
        let pulled = pull_first(&store, &places, &request, args.quiet)?;
        engine.note_image("pull", &pulled, name);
        print_line(pulled.id.hex())
    })
}

/// Brings an image that is to be run here, as the policy says. Returns what it is found by.
pub fn provide(
    engine: &Engine,
    wanted: &str,
    policy: PullPolicy,
    args: &RegistryArgs,
    quiet: bool,
) -> Result<String, Failure> {
    let store = engine.images()?;
    let request = request(args);
    let there = match store.find(wanted) {
        Ok(found) => Some(found),
        Err(StorageError::NotFound { .. }) if policy != PullPolicy::Never => None,
        Err(error) => return Err(error.into()),
    };
    let is_enough = match (&there, policy) {
        (None, _) | (_, PullPolicy::Always) => false,
        (Some(_), PullPolicy::Never) => true,
        (Some((image, _)), _) if !fits(image, &request) => false,
        (Some(_), PullPolicy::Missing) | (Some((_, None)), PullPolicy::Newer) => true,
        (Some((image, Some(name))), PullPolicy::Newer) => {
            // Where the registry is out of reach, what is here does as well.
            store
                .is_current(name, image, &request)
                .unwrap_or_else(|error| {
                    warn(&chain(&error));
                    true
                })
        }
    };
    if is_enough {
        return Ok(wanted.to_owned());
    }
    let places = match there {
        // Under the name that it has here.
        Some((_, Some(name))) => vec![name],
        _ => short_names::remotes(wanted.parse()?)?,
    };
    let pulled = pull_first(&store, &places, &request, quiet)?;
    engine.note_image("pull", &pulled, wanted);
    // By its id it is this one, whatever the name stands for in a moment.
    Ok(pulled.id.to_string())
}

/// Pulls from the first of several places that has it.
fn pull_first(
    store: &ImageStore,
    places: &[ImageRef],
    request: &PullRequest,
    quiet: bool,
) -> Result<Image, Failure> {
    let (last, before) = places.split_last().expect("there is one place at least");
    for place in before {
        match store.pull(place, request, &*progress(quiet), &mut warn) {
            Ok(image) => return Ok(image),
            Err(error) => warn(&chain(&error)),
        }
    }
    Ok(store.pull(last, request, &*progress(quiet), &mut warn)?)
}

fn request(args: &RegistryArgs) -> PullRequest {
    PullRequest {
        platform: args.platform(),
        access: Access {
            auth_file: args.authfile.clone(),
            ..access(&args.tls)
        },
    }
}

/// What is said of getting at a registry.
pub fn access_of(args: &AccessArgs) -> Access {
    Access {
        credentials: args.creds.clone(),
        auth_file: args.authfile.clone(),
        ..access(&args.tls)
    }
}

/// What is said of the talk with registries.
pub fn access(args: &TlsArgs) -> Access {
    Access {
        tls_verify: args.tls_verify,
        cert_dir: args.cert_dir.clone(),
        ..Access::default()
    }
}

/// Whether an image is for the platform that is asked for, if one is.
fn fits(image: &Image, request: &PullRequest) -> bool {
    let (os, architecture) = (image.config.os(), image.config.architecture());
    let platform = request.platform.as_ref();
    platform.is_none_or(|platform| platform.is(&os.to_string(), &architecture.to_string()))
}

/// Where a registry has it.
pub fn remote(name: ImageName) -> Result<ImageRef, Failure> {
    let registries = match name {
        ImageName::Short(_) => Registries::load()?,
        ImageName::Full(_) => Registries::default(),
    };
    Ok(name.remote(&registries)?)
}
