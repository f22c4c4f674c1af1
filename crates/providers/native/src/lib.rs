//! Native Linux sandboxes: namespaces, overlay, cgroups; no daemon.
