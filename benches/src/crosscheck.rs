//! The same question asked of iperf3, wrk and nginx, so that the built-in generators are not taken
//! on trust.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::namespaces::SCRATCH;
use crate::peers;
use crate::place::Place;
use crate::traffic::datagrams;

/// A question for iperf3.
pub struct Iperf3 {
    pub client_sends: bool,
    pub flows: u32,
    pub seconds: u64,
    /// UDP, unpaced, with so much payload in each datagram; TCP otherwise.
    pub datagram_bytes: Option<u16>,
}

impl Iperf3 {
    /// Gbit/s that arrive. The server runs at the listening end and serves one test.
    pub fn run(&self, client: &Place, server: &Place) -> Result<f64> {
        let program = peers::find_program("iperf3").context("iperf3 is not installed")?;
        let port = server.address.port().to_string();
        let mut listener = Killed(start(
            &program,
            server,
            &["--server", "--one-off", "--port", &port],
        )?);
        wait_listening(&mut listener.0)?;
        let sender = if self.client_sends { client } else { server };
        let args = self.arguments(client, sender);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = start(&program, client, &args)?
            .wait_with_output()
            .context("failed to wait for iperf3")?;
        parse_iperf3(&String::from_utf8_lossy(&output.stdout))
    }

    fn arguments(&self, client: &Place, sender: &Place) -> Vec<String> {
        let mut args = format!(
            "--client {} --port {} --json --omit 1 --time {} --parallel {}",
            client.address.ip(),
            client.address.port(),
            self.seconds,
            self.flows,
        );
        args += &match self.datagram_bytes {
            Some(bytes) => format!(" --udp --bitrate 0 --length {bytes}{}", buffers()),
            None => format!(" --congestion {}", sender.congestion.name()),
        };
        if !self.client_sends {
            args += " --reverse";
        }
        args.split(' ').map(String::from).collect()
    }
}

/// The option for the socket buffers that our own generator asks for. Unlike it, iperf3 fails when
/// it is given less.
fn buffers() -> String {
    let limit = |name| -> Option<usize> {
        let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let allowed = limit("rmem_max").zip(limit("wmem_max"));
    let bytes = |(read, write): (usize, usize)| read.min(write).min(datagrams::RECEIVE_BUFFER);
    allowed.map_or(String::new(), |limits| {
        format!(" --window {}", bytes(limits))
    })
}

/// A question for wrk.
pub struct Wrk {
    pub connections: u32,
    /// A connection for each request.
    pub new_each: bool,
    pub seconds: u64,
}

impl Wrk {
    /// Requests per second, asked of the HTTP service that runs.
    pub fn run(&self, client: &Place) -> Result<f64> {
        let program = peers::find_program("wrk").context("wrk is not installed")?;
        let connections = self.connections.to_string();
        let duration = format!("{}s", self.seconds);
        let url = format!("http://{}/", client.address);
        let mut args = vec!["--threads", "1", "--connections", &connections];
        args.extend(["--duration", &duration]);
        if self.new_each {
            args.extend(["--header", "Connection: close"]);
        }
        args.push(&url);
        let output = start(&program, client, &args)?
            .wait_with_output()
            .context("failed to wait for wrk")?;
        parse_wrk(&String::from_utf8_lossy(&output.stdout))
    }
}

/// nginx as the HTTP service, with answers as long as ours, until it is dropped.
pub struct Nginx {
    _running: Killed,
}

impl Nginx {
    pub fn start(server: &Place) -> Result<Self> {
        let program = peers::find_program("nginx").context("nginx is not installed")?;
        let scratch = Path::new(SCRATCH);
        let file = scratch.join("nginx.conf");
        let configuration = Self::configuration(server.address);
        std::fs::write(&file, configuration).context("failed to write nginx's configuration")?;
        let [prefix, file] = [scratch, &file].map(|path| path.to_string_lossy().into_owned());
        let args = ["-p", &prefix, "-c", &file, "-e", "nginx.log"];
        let mut running = Killed(start(&program, server, &args)?);
        wait_listening(&mut running.0)?;
        Ok(Self { _running: running })
    }

    /// One process, which leaves nothing anywhere but in its prefix.
    fn configuration(listen: SocketAddr) -> String {
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path tmp-{kind};\n"))
            .concat();
        let body = "x".repeat(RESPONSE_BODY_BYTES);
        format!(
            "daemon off; master_process off; pid nginx.pid;\n\
             events {{ worker_connections 8192; }}\n\
             http {{ access_log off; keepalive_requests 1000000000;\n{temporary}\
             server {{ listen {listen} backlog=4096; return 200 {body}; }} }}\n"
        )
    }
}

/// With nginx's head about as long as one of our answers.
const RESPONSE_BODY_BYTES: usize = 450;

/// A child that does not outlive the check.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &Path, place: &Place, args: &[&str]) -> Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("__exec");
    if let Some(pid) = place.enter {
        command.arg(format!("--enter={pid}"));
    }
    command
        .arg("--")
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
        .spawn()
        .with_context(|| format!("failed to start {}", program.display()))
}

/// A server that says nothing once it listens gets a fixed moment (iperf3 does not when its output
/// is no terminal).
fn wait_listening(child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + Duration::from_millis(200);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            bail!("the server ended with {status}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn parse_iperf3(text: &str) -> Result<f64> {
    let result: Value = serde_json::from_str(text).context("iperf3 printed no JSON")?;
    if let Some(error) = result.get("error") {
        bail!("iperf3: {error}");
    }
    let number = |path| result.pointer(path).and_then(Value::as_f64);
    let received = number("/end/sum_received/bits_per_second");
    // Before 3.13 a UDP test has one sum: the sender's rate, and the share that the receiver
    // missed.
    let sent = number("/end/sum/bits_per_second").zip(number("/end/sum/lost_percent"));
    let rate = received.or(sent.map(|(rate, lost)| rate * (1.0 - lost / 100.0)));
    Ok(rate.context("iperf3 reported no rate")? / 1e9)
}

fn parse_wrk(text: &str) -> Result<f64> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    line.context("wrk reported no rate")?
        .trim()
        .parse()
        .context("wrk reported a rate that is no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iperf3_results_and_errors() {
        let text = r#"{"end": {"sum_sent": {"bits_per_second": 3e9}, "sum_received": {"bits_per_second": 2.5e9}}}"#;
        assert_eq!(parse_iperf3(text).unwrap(), 2.5);
        let udp = r#"{"end": {"sum": {"bits_per_second": 4e9, "lost_percent": 25.0}}}"#;
        assert_eq!(parse_iperf3(udp).unwrap(), 3.0);
        let refused =
            r#"{"start": {}, "error": "unable to connect to server: Connection refused"}"#;
        assert!(
            parse_iperf3(refused)
                .unwrap_err()
                .to_string()
                .contains("refused")
        );
        assert!(parse_iperf3("").is_err());
    }

    #[test]
    fn wrk_results() {
        let text = "Running 1s test\n  1 threads and 64 connections\nRequests/sec:  65432.10\nTransfer/sec: 1MB\n";
        assert_eq!(parse_wrk(text).unwrap(), 65432.10);
        assert!(parse_wrk("unable to connect to 127.0.0.1:8080 Connection refused\n").is_err());
    }
}
