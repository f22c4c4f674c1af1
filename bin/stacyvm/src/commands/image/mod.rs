//! `stacyvm image`: what sandboxes can be made of.

mod place;

use crate::{
    cli::Global,
    complete,
    failure::Result,
    output,
    table::{Cell, Table},
};
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;
use jiff::{Timestamp, ZonedDateTime};
use place::Place;
use stacyvm_types::{Image, PrunedImages};
use std::path::PathBuf;

/// Images: pull, import, list, look at, remove
///
/// With --server or STACYVM_SERVER those of that server; else those in the data directory of this host, which a server here
/// and `stacyvm run` use, too.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm image pull python:3.12-slim
  docker save my/image | stacyvm image import -
  stacyvm image ls
  stacyvm run --image python:3.12-slim -- python3 -c 'print(40+2)'")]
pub(crate) struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List images, those used last first
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  stacyvm image ls\n  stacyvm image ls --json | jq -r '.[].names[]'"
    )]
    Ls,
    /// Pull images from their registries; what is here already is not fetched again
    #[command(after_help = "Examples:
  stacyvm image pull alpine ghcr.io/owner/image:tag
  stacyvm image pull registry.example:5000/a/b@sha256:…")]
    Pull {
        /// Names of images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Import an archive or a directory
    ///
    /// What `docker save` writes, an OCI layout, or a root filesystem; archives may be compressed with gzip or zstd. What it
    /// is, is found by its content.
    #[command(after_help = "Examples:
  docker save my/image | stacyvm image import -
  stacyvm image import rootfs.tar.zst --name my/image:1
  stacyvm image import ./oci-layout")]
    Import {
        /// Archive, `-` for standard input, or (without a server) a directory
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Name for the image [default: those in the archive]
        #[arg(long, value_name = "IMAGE")]
        name: Option<String>,
    },
    /// Show all that is known of an image, as JSON
    #[command(after_help = "Examples:\n  stacyvm image inspect alpine | jq .config.env")]
    Inspect {
        /// Its name, its id, or the beginning of that
        #[arg(add = ArgValueCompleter::new(complete::images))]
        image: String,
    },
    /// Remove images: the name, and the image with its last name
    #[command(after_help = "Examples:\n  stacyvm image rm alpine python:3.12-slim")]
    Rm {
        /// Names, ids, or the beginnings of ids
        #[arg(required = true, value_name = "IMAGE", add = ArgValueCompleter::new(complete::images))]
        images: Vec<String>,
        /// Also if sandboxes have it: they keep its files
        #[arg(short, long)]
        force: bool,
    },
    /// Remove images without a name, and what nothing needs
    #[command(after_help = "Examples:\n  stacyvm image prune\n  stacyvm image prune --all")]
    Prune {
        /// Also those with a name, if no sandbox has them
        #[arg(short, long)]
        all: bool,
    },
}

impl Command {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let place = Place::of(global)?;
        match &self.action {
            Action::Ls => {
                let images = place.list().await?;
                if global.json {
                    return output::json(&images);
                }
                if images.is_empty() {
                    return output::line("No images; get one with `stacyvm image pull alpine`");
                }
                output::text(&render(&images, &ZonedDateTime::now(), output::width(), output::colours()))
            }
            Action::Pull { images } => {
                let mut pulled = Vec::new();
                for name in images {
                    let image = place.pull(name).await?;
                    if !global.json {
                        say("Pulled", name, &image)?;
                    }
                    pulled.push(image);
                }
                if global.json { output::json(&pulled) } else { Ok(()) }
            }
            Action::Import { file, name } => {
                let imported = place.import(file, name.as_deref()).await?;
                if global.json {
                    return output::json(&imported);
                }
                imported.iter().try_for_each(|image| say("Imported", title(image), image))
            }
            Action::Inspect { image } => output::json(&place.find(image).await?),
            Action::Rm { images, force } => {
                let mut all = Vec::new();
                for name in images {
                    let removed = place.remove(name, *force).await?;
                    if !global.json {
                        let what = if removed.id.is_some() { "Removed" } else { "Removed the name" };
                        output::line(format_args!("{what} {name} ({} freed)", size(removed.bytes)))?;
                    }
                    all.push(removed);
                }
                if global.json { output::json(&all) } else { Ok(()) }
            }
            Action::Prune { all } => {
                let pruned = place.prune(*all).await?;
                if global.json {
                    return output::json(&pruned);
                }
                let PrunedImages { images, layers, downloads, bytes } = pruned;
                output::line(format_args!(
                    "Removed {images} images, {layers} layers and {downloads} downloads: {} freed",
                    size(bytes)
                ))
            }
        }
    }
}

fn say(what: &str, name: &str, image: &Image) -> Result<()> {
    output::line(format_args!("{what} {name} ({}, {})", short(&image.id), size(image.size_bytes)))
}

fn title(image: &Image) -> &str {
    image.names.first().map_or("an image without a name", String::as_str)
}

/// The first twelve digits of an id.
fn short(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..12).unwrap_or(digits)
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

fn render(images: &[Image], now: &ZonedDateTime, width: Option<usize>, colours: bool) -> String {
    let mut table = Table::new(&["IMAGE", "ID", "SIZE", "USED", "SANDBOXES"])
        .cut(&[(0, 20)])
        .leave_out(&[4, 3, 1])
        .right(&[2, 4]);
    for image in images {
        let names = if image.names.is_empty() { vec!["<none>".to_owned()] } else { image.names.clone() };
        for name in names {
            table.row(vec![
                Cell::new(name),
                Cell::new(short(&image.id)),
                Cell::new(size(image.size_bytes)),
                Cell::new(ago(image.used_at, now)),
                Cell::new(image.in_use.to_string()),
            ]);
        }
    }
    table.render(width, colours)
}

/// How long ago, in the largest unit that fits.
fn ago(at: Timestamp, now: &ZonedDateTime) -> String {
    let seconds = now.timestamp().as_second().saturating_sub(at.as_second()).max(0);
    match seconds {
        0..60 => "now".to_owned(),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_every_name() {
        let at: Timestamp = "2026-05-04T10:30:00Z".parse().unwrap();
        let image = Image {
            id: format!("sha256:{}", "0123456789ab".repeat(5) + "cdef"),
            names: vec!["alpine".into(), "ghcr.io/o/i:1".into()],
            platform: "linux/amd64".into(),
            size_bytes: 5 << 20,
            layers: 1,
            source: "a registry".into(),
            manifest: None,
            added_at: at,
            used_at: at,
            in_use: 2,
            config: Default::default(),
            notes: Vec::new(),
        };
        let unnamed = Image { names: Vec::new(), in_use: 0, ..image.clone() };
        let now =
            "2026-05-04T12:00:00Z".parse::<Timestamp>().unwrap().to_zoned_datetime(jiff::tz::TimeZone::UTC);
        let text = render(&[image, unnamed], &now, None, false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(
            lines[1].starts_with("alpine")
                && lines[1].contains("0123456789ab")
                && lines[1].contains("1 h ago")
        );
        assert!(lines[3].starts_with("<none>"), "{text}");
    }
}
