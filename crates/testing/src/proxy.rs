//! The real Envoy, nginx and Caddy, with the configurations that `docs/proxies/` publishes.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::command::project;
use super::program::Program;
use super::wait::DEADLINE;

/// A proxy, and how it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    Caddy,
    Haproxy,
    EnvoyHttp,
    EnvoyGrpc,
}

/// A running proxy. Dropping it kills it.
pub struct Proxy {
    pub kind: Kind,
    pub address: SocketAddr,
    _program: Program,
    _folder: Folder,
}

struct Folder(PathBuf);

impl Kind {
    pub const ALL: [Self; 5] = [Self::Nginx, Self::Caddy, Self::Haproxy, Self::EnvoyHttp, Self::EnvoyGrpc];

    /// The published file.
    pub fn recipe(self) -> String {
        let file = recipes().join(self.file_name());
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }

    /// The same, asking over TLS with the files in `folder`: `ca.crt`, `tls.crt` and `tls.key`.
    pub fn recipe_over_tls(self, folder: &Path) -> String {
        let recipe = replaced(&self.recipe_with("Over TLS"), "/etc/keywright", &folder.display().to_string());
        if self == Self::Nginx {
            replaced(&recipe, "proxy_pass http://keywright", "proxy_pass https://keywright")
        } else {
            recipe
        }
    }

    /// The recipe with the `#` taken off the lines below each comment that starts with `title`, as its reader is told to.
    pub fn recipe_with(self, title: &str) -> String {
        let mut is_about_it = false;
        let uncomment = |line: &str| {
            let comment = line.trim_start().strip_prefix("# ");
            let is_setting = is_about_it && comment.is_some();
            is_about_it = is_setting || comment.is_some_and(|comment| comment.starts_with(title));
            let line = if is_setting { line.replacen("# ", "", 1) } else { line.to_owned() };
            line + "\n"
        };
        self.recipe().lines().map(uncomment).collect()
    }

    /// The program, as `tests/testbed/tools.sh` installs it.
    pub fn program(self) -> PathBuf {
        let (name, in_cache) = match self {
            Self::Nginx => ("nginx", "nginx/usr/sbin/nginx"),
            Self::Caddy => ("caddy", "caddy/usr/bin/caddy"),
            Self::Haproxy => ("haproxy", "haproxy/usr/sbin/haproxy"),
            Self::EnvoyHttp | Self::EnvoyGrpc => return cache().join("envoy-1.40.0/envoy/_bin/envoy"),
        };
        let installed = ["/usr/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(name));
        installed.into_iter().find(|path| path.exists()).unwrap_or_else(|| cache().join(in_cache))
    }

    /// Starts it with its recipe, as it is published, for this verifier and this workload.
    pub async fn start(self, verifier: SocketAddr, workload: SocketAddr) -> Proxy {
        self.start_with(&self.recipe(), verifier, workload).await
    }

    /// Starts it with another configuration that holds the recipe's addresses.
    pub async fn start_with(self, configuration: &str, verifier: SocketAddr, workload: SocketAddr) -> Proxy {
        let address = free_address();
        let configuration = self.with_addresses(configuration, address, verifier, workload);
        let folder = Folder::new();
        let file = folder.0.join(self.file_name());
        fs::write(&file, configuration).unwrap();
        let program = Program::other(&format!("{self:?}"), &self.command(&folder.0, &file)).await;
        let connected = timeout(DEADLINE, async {
            while TcpStream::connect(address).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(connected.await.is_ok(), "{self:?} does not listen:\n{}", program.printed());
        Proxy { kind: self, address, _program: program, _folder: folder }
    }

    const fn file_name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx.conf",
            Self::Caddy => "Caddyfile",
            Self::Haproxy => "haproxy.cfg",
            Self::EnvoyHttp => "envoy-http.yaml",
            Self::EnvoyGrpc => "envoy-grpc.yaml",
        }
    }

    /// Addresses, and where other files are, are all that a test replaces.
    fn with_addresses(self, text: &str, own: SocketAddr, verifier: SocketAddr, workload: SocketAddr) -> String {
        let yaml = |address: SocketAddr| format!("address: {}, port_value: {}", address.ip(), address.port());
        let replacements = match self {
            Self::Nginx => vec![
                ("listen 8000", format!("listen {own}")),
                ("keywright-verifier.keywright-system.svc:8080", verifier.to_string()),
                ("workload.team-a.svc:8080", workload.to_string()),
            ],
            Self::Caddy => vec![
                ("http://:8000 {", format!("http://:{} {{", own.port())),
                ("bind 0.0.0.0", format!("bind {}", own.ip())),
                ("keywright-verifier.keywright-system.svc:8080", verifier.to_string()),
                ("workload.team-a.svc:8080", workload.to_string()),
            ],
            Self::Haproxy => vec![
                ("bind :8000", format!("bind {own}")),
                ("/etc/haproxy/keywright.lua", recipes().join("keywright.lua").display().to_string()),
                ("keywright-verifier.keywright-system.svc:8080", verifier.to_string()),
                ("workload.team-a.svc:8080", workload.to_string()),
            ],
            Self::EnvoyHttp | Self::EnvoyGrpc => vec![
                ("address: 0.0.0.0, port_value: 8000", yaml(own)),
                ("address: workload.team-a.svc, port_value: 8080", yaml(workload)),
                (
                    if self == Self::EnvoyHttp {
                        "address: keywright-verifier.keywright-system.svc, port_value: 8080"
                    } else {
                        "address: keywright-verifier.keywright-system.svc, port_value: 9001"
                    },
                    yaml(verifier),
                ),
            ],
        };
        replacements.into_iter().fold(text.to_owned(), |text, (name, address)| replaced(&text, name, &address))
    }

    fn command(self, folder: &Path, file: &Path) -> Vec<String> {
        let program = self.program().display().to_string();
        let (folder, file) = (folder.display().to_string(), file.display().to_string());
        let arguments = match self {
            Self::Nginx => {
                // The recipe is a part of the http block; nginx's own folders are not there without its package.
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
                let paths: String = temporary.map(|name| format!("{name}_temp_path {folder}/{name};\n")).concat();
                let main = format!(
                    "daemon off; master_process off; pid {folder}/pid; error_log stderr;\nevents {{}}\n\
                     http {{\naccess_log off;\n{paths}include {file};\n}}\n"
                );
                let main_file = format!("{folder}/main.conf");
                fs::write(&main_file, main).unwrap();
                vec!["-p".to_owned(), folder, "-e".to_owned(), "stderr".to_owned(), "-c".to_owned(), main_file]
            }
            Self::Caddy => {
                return vec![
                    "env".to_owned(),
                    format!("HOME={folder}"),
                    format!("XDG_CONFIG_HOME={folder}"),
                    format!("XDG_DATA_HOME={folder}"),
                    program,
                    "run".to_owned(),
                    "--adapter".to_owned(),
                    "caddyfile".to_owned(),
                    "--config".to_owned(),
                    file,
                ];
            }
            Self::Haproxy => vec!["-db".to_owned(), "-f".to_owned(), file],
            Self::EnvoyHttp | Self::EnvoyGrpc => {
                let options = "--concurrency 1 --disable-hot-restart --log-level warn -c";
                options.split(' ').map(str::to_owned).chain([file]).collect()
            }
        };
        [vec![program], arguments].concat()
    }
}

/// Where they are published.
fn recipes() -> PathBuf {
    project().join("docs/proxies")
}

/// The text with every `name` replaced.
pub fn replaced(text: &str, name: &str, by: &str) -> String {
    assert!(text.contains(name), "the recipe no longer says {name:?}");
    text.replace(name, by)
}

fn cache() -> PathBuf {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("KEYWRIGHT_CACHE").unwrap_or_else(|| {
        let caches = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
        caches.expect("HOME is set").join("keywright")
    })
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("proxy-{:08x}", rand::random::<u32>()));
        fs::create_dir_all(&path).expect("a folder for the proxy");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Best effort: it is below target/tmp.
        let _ = fs::remove_dir_all(&self.0);
    }
}
