//! The table of keys. Order is the order of `config show`; keys of one group stand together.

use crate::key::{Effect, Key, Kind};

const ANY: Kind = Kind::Int { min: i64::MIN, max: i64::MAX };
const COUNT: Kind = Kind::Int { min: 0, max: i64::MAX };
const U32: Kind = Kind::Int { min: 0, max: u32::MAX as i64 };
const PORT: Kind = Kind::Int { min: 0, max: 65_535 };
const OVERFLOW: Kind = Kind::Choice(&["reject", "queue"]);
const KEY_BY: Kind = Kind::Choice(&["owner", "api_key", "ip"]);
const ORPHANS: Kind = Kind::Choice(&["remove", "keep"]);
const PULL: Kind = Kind::Choice(&["always", "missing", "never"]);
const NETWORK: Kind = Kind::Choice(&["none", "internet", "nat"]);
const DRIVER: Kind = Kind::Choice(&["sqlite", "sqlite3", "postgres", "postgresql"]);
const LEVEL: Kind = Kind::Choice(&["trace", "debug", "info", "warn", "error", "fatal", "panic", "disabled"]);
const FORMAT: Kind = Kind::Choice(&["json", "pretty"]);
use Effect::{Live, None};
use Kind::{Bool, Duration, List, Map, Secret, SecretList, SecretMap, Text};

const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    effect: Effect,
    doc: &'static str,
) -> Key {
    Key { name, kind, default, effect, doc }
}

/// The key of this name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Every key.
#[rustfmt::skip]
pub static KEYS: &[Key] = &[
    key("data_dir", Text, "", Live, "Directory that holds all state of this installation. Default: /var/lib/stacyvm for root, else $XDG_STATE_HOME/stacyvm or ~/.local/state/stacyvm."),
    key("agent_path", Text, "", Live, "Guest agent binary to use instead of the built-in one."),

    key("server.host", Text, "", Live, "Address to listen on. Default: 0.0.0.0 with an API key, 127.0.0.1 without. An address that is not loopback needs a key or auth.allow_unauthenticated."),
    key("server.port", PORT, "7423", Live, "Port to listen on; 0 takes a free one."),
    key("server.preview_domain", Text, "localhost", Live, "Domain under which sandbox ports are previewed; returned with each sandbox."),
    key("server.stream_heartbeat", Duration, "15s", Live, "Longest silence on a stream: a sign of life is sent then, which keeps proxies from cutting it. Below the idle time of the proxy in front; 100ms to 30s."),
    key("server.cors_allowed_origins", List, "*", Live, "Origins whose web pages may read answers; * or an empty list: any."),

    key("worker.id", Text, "", None, "Name of this worker; empty: the host name."),
    key("worker.control_plane_url", Text, "http://localhost:7423", None, "Control plane that the worker reports to."),
    key("worker.listen_addr", Text, "", None, "Address of the worker's own listener; empty: heartbeat only."),
    key("worker.preview_domain", Text, "", None, "Preview domain of this worker; empty: server.preview_domain."),
    key("worker.heartbeat_interval", Duration, "30s", None, "Time between heartbeats."),
    key("worker.shutdown_timeout", Duration, "10s", None, "Time for a graceful stop."),
    key("worker.rpc_tls.enabled", Bool, "false", None, "TLS between control plane and workers."),
    key("worker.rpc_tls.server_cert_file", Text, "", None, "Certificate of the worker."),
    key("worker.rpc_tls.server_key_file", Text, "", None, "Private key of the worker."),
    key("worker.rpc_tls.client_ca_file", Text, "", None, "Authority of client certificates; set: they are required."),
    key("worker.rpc_tls.ca_file", Text, "", None, "Authority that the control plane trusts."),
    key("worker.rpc_tls.client_cert_file", Text, "", None, "Certificate of the control plane."),
    key("worker.rpc_tls.client_key_file", Text, "", None, "Private key of the control plane."),
    key("worker.rpc_tls.server_name", Text, "", None, "Name expected in the worker's certificate."),
    key("worker.rpc_tls.insecure_skip_verify", Bool, "false", None, "Accept any certificate."),

    key("images.pull_policy", PULL, "missing", Live, "When images of native sandboxes are pulled."),
    key("images.prefetch", List, "", Live, "Images that are pulled when the server starts, so that the first sandbox need not wait."),
    key("images.max_size_mb", COUNT, "0", Live, "Disk of all images together in MiB; 0: no limit. The longest unused go first; what sandboxes have stays."),
    key("images.mirrors", Map, "", Live, "Registries that are asked first, as in docker.io: mirror.example; several with spaces between."),
    key("images.insecure_registries", List, "", Live, "Registries and mirrors, host:port, that may speak plain HTTP or have a certificate that nobody vouches for."),
    key("images.credentials", SecretMap, "", Live, "user:password by registry; they come before those of images.auth_file."),
    key("images.auth_file", Text, "", Live, "Credentials of registries, as docker login writes them. Default: config.json in $DOCKER_CONFIG or ~/.docker."),
    key("images.ca_file", Text, "", Live, "Certificates in PEM that registries are trusted by, beside the host's."),

    key("providers.default", Text, "auto", Live, "Provider of sandboxes that name none; auto: the first healthy one of docker, native and mock that is enabled."),
    key("providers.orphans", ORPHANS, "remove", Live, "What becomes of sandboxes of this installation that a runtime holds and the database does not know."),
    key("providers.native.enabled", Bool, "true", Live, "Sandboxes made of this host's namespaces and cgroups; needs Linux and root."),
    key("providers.native.image_dirs", List, "", Live, "Absolute directories; they and those below them may be named as images, and every file in them is read as root."),
    key("providers.native.network_mode", NETWORK, "none", Live, "Network of sandboxes that name none: none, or internet (nat means the same): no private or metadata address, no host, no other sandbox."),
    key("providers.native.dns", List, "", Live, "Resolvers with the network internet; empty: the host's as far as they are public, else public ones. A private one can be asked, and may tell private names."),
    key("providers.native.blocked_addresses", List, "", Live, "What the network internet blocks beside private, link-local, metadata and this host's addresses and neighbours."),
    key("providers.native.address_pool", List, "", Live, "A prefix of IPv4 and one of IPv6 from which sandboxes get addresses; empty: private ones that this host has no route to."),
    key("providers.mock.enabled", Bool, "false", Live, "Test provider: no isolation at all, commands run on the host."),
    key("providers.docker.enabled", Bool, "true", Live, "Sandboxes as containers of a Docker daemon. Unless set, only where there is one when the server starts."),
    key("providers.docker.socket", Text, "", Live, "URL or path of the daemon's socket; empty: DOCKER_HOST, else /var/run/docker.sock."),
    key("providers.docker.runtime", Text, "runc", Live, "Runtime of sandboxes that name none, as registered with the daemon: runc, runsc, kata-runtime."),
    key("providers.docker.default_image", Text, "alpine:latest", None, "Unused; see defaults.image."),
    key("providers.docker.network_mode", Text, "bridge", Live, "Network of sandboxes: none, internet (no private or metadata address, no host, no other sandbox), or the name of one; empty: none."),
    key("providers.docker.seccomp_profile", Text, "default", Live, "Path of a seccomp profile in Docker's JSON form; default: the daemon's; unconfined: none."),
    key("providers.docker.read_only_rootfs", Bool, "false", Live, "Only /workspace, /tmp and the home directory can be written to."),
    key("providers.docker.memory", Text, "512m", None, "Unused; see defaults.memory_mb."),
    key("providers.docker.cpus", Text, "1", None, "Unused; see defaults.vcpus."),
    key("providers.docker.pids_limit", ANY, "256", Live, "Most processes of a sandbox, whatever it asks for."),
    key("providers.docker.user", Text, "", Live, "Uid, or uid:gid, of the sandbox user; empty: the image's if it is a number, else 1000."),
    key("providers.docker.dropped_caps", List, "ALL", None, "Unused: processes have no capabilities at all."),
    key("providers.docker.added_caps", List, "", None, "Unused: processes have no capabilities at all."),
    key("providers.docker.tmpfs", Map, "", Live, "Paths with tmpfs mount options."),
    key("providers.docker.allowed_runtimes", List, "", Live, "Runtimes that a sandbox may name, beside the default one."),
    key("providers.docker.blocked_addresses", List, "", Live, "What the network internet blocks beside private, link-local, metadata and this host's addresses."),
    key("providers.docker.dns", List, "", Live, "Resolvers of sandboxes; empty: the daemon's, with the network internet public ones."),
    key("providers.docker.ulimits", Map, "", Live, "Limits of single processes, as in nofile=1024:65536."),
    key("providers.docker.disk_size_mb", U32, "0", Live, "Size of a sandbox's writable layer in MiB, where the daemon's storage can limit it; 0: no limit."),
    key("providers.docker.pull_policy", PULL, "missing", Live, "When images are pulled."),
    key("providers.docker.platform", Text, "", Live, "Platform of images, as in linux/arm64; empty: the daemon's."),
    key("providers.docker.auth_file", Text, "", Live, "Credentials of registries, as docker login writes them. Default: config.json in $DOCKER_CONFIG or ~/.docker."),
    key("providers.docker.pool_security.per_user_uid", Bool, "false", None, "Unused."),
    key("providers.docker.pool_security.pid_namespace", Bool, "false", None, "Unused."),
    key("providers.docker.pool_security.workspace_permissions", Bool, "true", None, "Unused."),
    key("providers.docker.pool_security.hidepid", Bool, "false", None, "Unused."),
    key("providers.firecracker.enabled", Bool, "true", None, "Sandboxes as Firecracker microVMs."),
    key("providers.firecracker.firecracker_path", Text, "/usr/local/bin/firecracker", None, "The firecracker binary."),
    key("providers.firecracker.kernel_path", Text, "/var/lib/stacyvm/vmlinux.bin", None, "Guest kernel."),
    key("providers.firecracker.default_rootfs", Text, "", None, "Root filesystem used when no image is named."),
    key("providers.firecracker.agent_path", Text, "./bin/stacyvm-agent", None, "Agent binary put into root filesystems."),
    key("providers.firecracker.data_dir", Text, "/var/lib/stacyvm", None, "Directory of its images and snapshots."),
    key("providers.e2b.enabled", Bool, "false", None, "Sandboxes at E2B."),
    key("providers.e2b.api_key", Secret, "", None, "Key for E2B."),
    key("providers.e2b.base_url", Text, "https://api.e2b.dev", None, "Address of E2B's API."),
    key("providers.custom.enabled", Bool, "false", None, "Sandboxes of an HTTP service of your own."),
    key("providers.custom.name", Text, "custom", None, "Name of that provider."),
    key("providers.custom.base_url", Text, "", None, "Address of the service."),
    key("providers.custom.api_key", Secret, "", None, "Key for the service."),
    key("providers.custom.timeout", Duration, "60s", None, "Time allowed for one request."),
    key("providers.proot.enabled", Bool, "false", None, "Sandboxes under PRoot, without root."),
    key("providers.proot.proot_binary", Text, "proot", None, "The proot binary."),
    key("providers.proot.rootfs_path", Text, "/var/lib/stacyvm/rootfs", None, "Root filesystem."),
    key("providers.proot.workspace_base", Text, "/var/lib/stacyvm/workspaces", None, "Directory of workspaces."),
    key("providers.proot.default_timeout", Duration, "60s", None, "Longest time of one command."),
    key("providers.proot.max_sandboxes", ANY, "10", None, "Most sandboxes at once."),
    key("providers.proot.max_memory_mb", ANY, "512", None, "Unused."),
    key("providers.proot.max_disk_mb", ANY, "1024", None, "Unused."),
    key("providers.proot.languages", List, "python3,node,bash", None, "Unused."),

    key("defaults.ttl", Duration, "30m", Live, "Time to live of sandboxes that name none."),
    key("defaults.image", Text, "alpine:latest", Live, "Image of sandboxes that name none."),
    key("defaults.memory_mb", U32, "1024", Live, "Memory limit in MiB; 0: none."),
    key("defaults.vcpus", U32, "1", Live, "Processor limit; 0: none."),
    key("defaults.pids", U32, "1024", Live, "Processes and threads at once; 0: no limit."),
    key("defaults.disk_size_mb", U32, "0", Live, "Disk limit in MiB; 0: none."),
    key("defaults.pool_size", ANY, "0", None, "Unused."),
    key("defaults.pool_template", Text, "", None, "Unused."),
    key("defaults.max_ttl", Duration, "24h", Live, "Longest time to live; 0s: no limit."),
    key("defaults.default_exec_timeout", Duration, "0s", Live, "Time allowed to an exec that names none; 0s: no deadline."),
    key("defaults.max_exec_timeout", Duration, "10m", Live, "Longest time of an exec, and of a process that names a timeout; others have no deadline. 0s: no limit."),
    key("defaults.max_sandboxes", COUNT, "0", Live, "Most sandboxes at once; 0: no limit."),
    key("defaults.max_sandboxes_per_owner", COUNT, "0", Live, "Most sandboxes of one owner at once; 0: no limit."),
    key("defaults.spawn_overflow", OVERFLOW, "reject", None, "What happens to a create above the limit."),
    key("defaults.spawn_queue_timeout", Duration, "30s", None, "Longest wait in the queue."),
    key("defaults.max_spawn_queue", COUNT, "100", None, "Most creates waiting; 0: 100."),

    key("auth.enabled", Bool, "false", Live, "Refuse to start without a key. Keys that are set are required of callers either way."),
    key("auth.allow_unauthenticated", Bool, "false", Live, "Listen beyond loopback without any key: whoever reaches the port may run commands."),
    key("auth.api_key", Secret, "", Live, "Key of ordinary callers (X-API-Key)."),
    key("auth.api_key_file", Text, "", Live, "File that holds auth.api_key."),
    key("auth.admin_api_key", Secret, "", Live, "Key of administrators (X-Admin-API-Key)."),
    key("auth.admin_api_key_file", Text, "", Live, "File that holds auth.admin_api_key."),
    key("auth.admin_fallback_enabled", Bool, "true", Live, "Without an admin key, the API key may do what admins may."),
    key("auth.admin_audit_retention", Duration, "0s", None, "How long audit entries are kept; 0s: for ever."),
    key("auth.worker_token", Secret, "", None, "Token shared by workers."),
    key("auth.worker_token_file", Text, "", None, "File that holds auth.worker_token."),
    key("auth.worker_tokens", SecretMap, "", None, "Token of each worker id."),
    key("auth.worker_signing_key", Secret, "", None, "Key that signs worker tokens."),
    key("auth.worker_signing_key_file", Text, "", None, "File that holds auth.worker_signing_key."),
    key("auth.worker_signing_keys", SecretList, "", None, "Keys that still verify worker tokens."),
    key("auth.worker_revoked_token_ids", List, "", None, "Worker tokens that are refused."),
    key("auth.oidc_enabled", Bool, "false", None, "Accept bearer tokens of an identity provider."),
    key("auth.oidc_issuer", Text, "", None, "Issuer of tokens."),
    key("auth.oidc_audience", Text, "", None, "Audience of tokens."),
    key("auth.oidc_jwks_url", Text, "", None, "Where the issuer's keys are."),
    key("auth.oidc_public_key", Text, "", None, "The issuer's key."),
    key("auth.oidc_public_key_file", Text, "", None, "File that holds auth.oidc_public_key."),
    key("auth.oidc_groups_claim", Text, "groups", None, "Claim that lists groups."),
    key("auth.oidc_tenant_claim", Text, "tenant_id", None, "Claim that names the tenant."),
    key("auth.oidc_admin_groups", List, "", None, "Groups of administrators."),
    key("auth.oidc_operator_groups", List, "", None, "Groups of operators."),
    key("auth.oidc_viewer_groups", List, "", None, "Groups of viewers."),

    key("rate_limit.enabled", Bool, "false", None, "Limit requests per caller."),
    key("rate_limit.requests_per_minute", COUNT, "120", None, "Requests per minute."),
    key("rate_limit.burst", COUNT, "60", None, "Requests at once."),
    key("rate_limit.key_by", KEY_BY, "owner", None, "What a caller is."),
    key("rate_limit.bucket_ttl", Duration, "15m", None, "When an idle caller is forgotten."),
    key("rate_limit.cleanup_interval", Duration, "1m", None, "How often that is looked for."),

    key("database.driver", DRIVER, "sqlite", Live, "Kind of database; this version stores in SQLite."),
    key("database.path", Text, "", Live, "SQLite file. Default: stacyvm.db in data_dir. A relative path starts at the current directory."),
    key("database.dsn", Secret, "", None, "PostgreSQL connection."),

    key("logging.level", LEVEL, "info", Live, "Least severe message logged."),
    key("logging.format", FORMAT, "json", Live, "json, or pretty for people."),

    key("pool.enabled", Bool, "false", None, "Several users share a sandbox."),
    key("pool.max_vms", ANY, "10", None, "Most shared sandboxes."),
    key("pool.max_users_per_vm", ANY, "5", None, "Most users of one."),
    key("pool.image", Text, "alpine:latest", None, "Image of shared sandboxes."),
    key("pool.memory_mb", ANY, "2048", None, "Memory limit of shared sandboxes in MiB."),
    key("pool.vcpus", ANY, "2", None, "Processor limit of shared sandboxes."),
    key("pool.overflow", OVERFLOW, "reject", None, "What happens when all are full."),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value;
    use std::collections::HashSet;

    #[test]
    fn names_and_variables_are_unique() {
        let names: HashSet<_> = KEYS.iter().map(|key| key.name).collect();
        let variables: HashSet<_> = KEYS.iter().map(Key::variable).collect();
        assert_eq!((names.len(), variables.len()), (KEYS.len(), KEYS.len()));
    }

    #[test]
    fn no_key_is_also_a_group() {
        for a in KEYS {
            assert!(!KEYS.iter().any(|b| b.name.starts_with(&format!("{}.", a.name))), "{}", a.name);
        }
    }

    #[test]
    fn every_default_is_a_value_of_its_kind() {
        for key in KEYS {
            value::from_text(key.kind, key.default).unwrap_or_else(|e| panic!("{}: {e:?}", key.name));
        }
    }

    #[test]
    fn meanings_are_sentences() {
        for key in KEYS {
            assert!(key.doc.ends_with('.') && !key.doc.contains('\n'), "{}", key.name);
        }
    }
}
