//! What a registry has: the repositories of its catalogue, and the tags of one of them.

use super::client::Connection;
use super::error::RegistryError;
use super::{Access, endpoints, run};
use crate::images::error::StorageError;
use crate::images::reference::ImageRef;

/// So many names are asked for at a time.
const PAGE: usize = 100;

/// The repositories of a registry whose names have `term` in them, `limit` at most.
///
/// # Errors
/// [`RegistryError::NoCatalogue`] for a registry that does not list what it has.
pub fn repositories(
    registry: &str,
    term: &str,
    limit: usize,
    access: &Access,
) -> Result<Vec<String>, StorageError> {
    let image: ImageRef = format!("{registry}/coracle/search").parse()?;
    let found = pages(&image, access, async |connection, last| {
        connection.repositories(PAGE, last).await
    })?;
    let found = found.into_iter().filter(|name| name.contains(term));
    Ok(found.take(limit).collect())
}

/// The tags of a repository, `limit` at most.
pub fn tags(image: &ImageRef, limit: usize, access: &Access) -> Result<Vec<String>, StorageError> {
    let mut tags = pages(image, access, async |connection, last| {
        connection.tags(PAGE, last).await
    })?;
    tags.truncate(limit);
    Ok(tags)
}

/// Asks again and again, from the last name on, until less than a page comes.
fn pages(
    image: &ImageRef,
    access: &Access,
    ask: impl AsyncFn(&Connection, Option<&str>) -> Result<Vec<String>, RegistryError>,
) -> Result<Vec<String>, StorageError> {
    /// More than anybody reads; a registry that has no end ends here.
    const PAGES_MAX: usize = 1000;
    let endpoints = endpoints(image, access)?;
    let own = endpoints.last().expect("there is one endpoint at least");
    run(async {
        let connection = Connection::make(own, access, oci_client::RegistryOperation::Pull).await?;
        let mut names: Vec<String> = Vec::new();
        for _ in 0..PAGES_MAX {
            let page = ask(&connection, names.last().map(String::as_str)).await?;
            let is_last = page.len() < PAGE;
            names.extend(page);
            if is_last {
                break;
            }
        }
        Ok(names)
    })
}
