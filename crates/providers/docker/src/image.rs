//! The image of a sandbox: there, or pulled as the policy says.

use crate::{
    failure::{failed, is_missing},
    pull::Pulls,
    reference,
};
use bollard::{Docker, models::ImageInspect};
use stacyvm_image::PullPolicy;
use stacyvm_provider::{Error, Result};

/// Sees to it that the daemon has `image`.
///
/// # Errors
/// `InvalidArgument` for what is no name of an image; `NotFound` where nothing is pulled; else those of [`Pulls::pull`].
pub(crate) async fn ensure(
    client: &Docker,
    pulls: &Pulls,
    policy: PullPolicy,
    image: &str,
) -> Result<ImageInspect> {
    reference::check(image)?;
    if policy == PullPolicy::Always {
        pulls.pull(client, image).await?;
    }
    match client.inspect_image(image).await {
        Ok(found) => return Ok(found),
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(failed("look at an image", error)),
    }
    if policy == PullPolicy::Never {
        return Err(Error::not_found(format!(
            "the docker daemon does not have the image {image}, and providers.docker.pull_policy is never: get it with `docker pull {image}`"
        )));
    }
    pulls.pull(client, image).await?;
    client.inspect_image(image).await.map_err(|error| failed("look at an image that it pulled", error))
}

/// Uid and gid of the image's own user, if it is a number and not root.
pub(crate) fn user(image: &ImageInspect) -> Option<(u32, u32)> {
    let user = image.config.as_ref()?.user.as_deref()?;
    let (uid, gid) = user.split_once(':').unwrap_or((user, user));
    let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
    // The highest number means "leave it as it is" to the kernel.
    (uid != 0 && uid != u32::MAX && gid != u32::MAX).then_some((uid, gid))
}

/// Names of the image's labels.
pub(crate) fn labels(image: &ImageInspect) -> Vec<String> {
    let labels = image.config.as_ref().and_then(|config| config.labels.as_ref());
    labels.into_iter().flat_map(|labels| labels.keys().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ImageConfig;

    #[test]
    fn a_numeric_user_who_is_not_root_is_taken_over() {
        let image = |user: &str| ImageInspect {
            config: Some(ImageConfig { user: Some(user.to_owned()), ..ImageConfig::default() }),
            ..ImageInspect::default()
        };
        assert_eq!(user(&image("1001")), Some((1001, 1001)));
        assert_eq!(user(&image("7:8")), Some((7, 8)));
        for other in ["4294967295:1000", "1000:4294967295", "", "0", "0:0", "root", "node", "1:x"] {
            assert_eq!(user(&image(other)), None, "{other}");
        }
    }
}
