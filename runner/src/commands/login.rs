//! `coracle login` and `coracle logout`: passwords for registries.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::print_line;
use super::pull::access;
use crate::cli::{LoginArgs, LogoutArgs};
use crate::failure::Failure;
use crate::images::registry::auth::{self, Credentials};
use crate::images::registry::{Access, try_credentials};
use crate::printable::escape;

pub fn login(args: LoginArgs) -> Result<u8, Failure> {
    let registry = &args.registry;
    if args.get_login {
        let found = auth::find(registry, args.authfile.as_deref())?;
        let found = found.ok_or_else(|| not_logged_in(registry))?;
        print_line(&escape(&found.user))?;
        return Ok(0);
    }
    let user = match args.username {
        Some(user) => user,
        None if args.password_stdin => {
            return Err(Failure::runner("--password-stdin needs --username"));
        }
        None => ask("Username: ", false)?,
    };
    let password = match args.password {
        Some(password) => password,
        None if args.password_stdin => {
            let mut text = String::new();
            let read = io::stdin().read_to_string(&mut text);
            read.map_err(Failure::context("cannot read the password"))?;
            without_newline(&text)
        }
        None => ask("Password: ", true)?,
    };
    let credentials = Credentials { user, password };
    let access = Access {
        credentials: Some(credentials.clone()),
        ..access(&args.tls)
    };
    try_credentials(registry, &access)?;
    let path = args.authfile.unwrap_or_else(auth::place);
    auth::keep(registry, Some(&credentials), &path)?;
    print_line("Login Succeeded!")?;
    Ok(0)
}

pub fn logout(args: LogoutArgs) -> Result<u8, Failure> {
    let path = args.authfile.unwrap_or_else(auth::place);
    match auth::keep(&args.registry, None, &path)? {
        true => print_line(&format!("Removed login credentials for {}", args.registry))?,
        false => return Err(not_logged_in(&args.registry)),
    }
    Ok(0)
}

fn not_logged_in(registry: &str) -> Failure {
    Failure::runner(format!("not logged in to {registry}"))
}

/// Asks at the terminal, which does not show what is `hidden`.
fn ask(prompt: &str, hidden: bool) -> Result<String, Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::runner(
            "there is no terminal to ask at: use --username and --password-stdin",
        ));
    }
    let failed = || "cannot ask at the terminal";
    let before = tcgetattr(&stdin).map_err(Failure::context(failed()))?;
    if hidden {
        let mut silent = before.clone();
        silent.local_modes -= LocalModes::ECHO;
        let set = tcsetattr(&stdin, OptionalActions::Now, &silent);
        set.map_err(Failure::context(failed()))?;
    }
    let mut answer = String::new();
    let asked = io::stderr()
        .write_all(prompt.as_bytes())
        .and_then(|()| stdin.lock().read_line(&mut answer));
    if hidden {
        let set = tcsetattr(&stdin, OptionalActions::Now, &before);
        set.map_err(Failure::context(failed()))?;
        // In place of the one that was typed.
        let _ = io::stderr().write_all(b"\n");
    }
    asked.map_err(Failure::context(failed()))?;
    Ok(without_newline(&answer))
}

fn without_newline(text: &str) -> String {
    text.trim_end_matches(['\r', '\n']).to_owned()
}
