// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names for numbers: of hosts by the resolver, of services by /etc/services, of users by /etc/passwd.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::{fs, thread};
use tcptop::Protocol;

/// So many names are kept; then all are asked for anew.
const MOST: usize = 10_000;

/// Names that take their time. A thread looks them up, so that nobody else waits.
pub(crate) struct Names<K> {
    /// None while nothing is known, and where there is no name.
    known: RefCell<HashMap<K, Option<String>>>,
    ask: Sender<K>,
    answers: Receiver<(K, String)>,
}

impl<K: Copy + Eq + Hash + Send + 'static> Names<K> {
    pub(crate) fn start(look_up: fn(K) -> Option<String>) -> Self {
        let ((ask, asked), (tell, answers)) = (bounded(64), bounded(64));
        thread::spawn(move || {
            for key in asked {
                if look_up(key).is_some_and(|name| tell.send((key, escaped(&name))).is_err()) {
                    return;
                }
            }
        });
        Self { known: RefCell::default(), ask, answers }
    }

    /// The name if that is known by now.
    pub(crate) fn name(&self, key: K) -> Option<String> {
        let mut known = self.known.borrow_mut();
        known.extend(self.answers.try_iter().map(|(key, name)| (key, Some(name))));
        if let Some(name) = known.get(&key) {
            return name.clone();
        }
        // If the thread is busy, it is asked with the next refresh.
        if self.ask.try_send(key).is_ok() {
            if known.len() >= MOST {
                known.clear();
            }
            known.insert(key, None);
        }
        None
    }
}

/// Names of hosts, by the resolver.
pub(crate) type Hosts = Names<IpAddr>;

impl Hosts {
    pub(crate) fn of_resolver() -> Self {
        // getnameinfo(3) gives back the number where there is no name.
        Self::start(|address| {
            let name = Some(address).filter(|ip| !ip.is_unspecified()).map(|ip| dns_lookup::lookup_addr(&ip));
            name?.ok().filter(|name| name.parse::<IpAddr>().is_err())
        })
    }
}

/// Paths of executables, by pid and start time. To read them takes rights that the view gives up: the thread is started before.
pub(crate) type Executables = Names<(u32, u64)>;

impl Executables {
    pub(crate) fn of_proc() -> Self {
        Self::start(|(pid, _)| {
            let path = procfs::process::Process::new(pid as i32).and_then(|process| process.exe()).ok()?;
            Some(path.to_string_lossy().into_owned())
        })
    }
}

/// Whoever owns an address chooses its name: it must not talk to the terminal.
fn escaped(name: &str) -> String {
    name.escape_debug().to_string()
}

/// Names of services by protocol and port.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services(HashMap<(Protocol, u16), String>);

impl Services {
    /// Of this machine; none where it has no such file.
    pub(crate) fn of_this_machine() -> Self {
        Self::parse(&fs::read_to_string("/etc/services").unwrap_or_default())
    }

    /// See services(5). The first name of a port counts.
    pub(crate) fn parse(text: &str) -> Self {
        let mut all = HashMap::new();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let (Some(name), Some((port, protocol))) =
                (words.next(), words.next().and_then(|word| word.split_once('/')))
            else {
                continue;
            };
            if let (Ok(protocol), Ok(port)) = (protocol.parse(), port.parse()) {
                all.entry((protocol, port)).or_insert_with(|| escaped(name));
            }
        }
        Self(all)
    }

    pub(crate) fn name(&self, protocol: Protocol, port: u16) -> Option<&str> {
        self.0.get(&(protocol, port)).map(String::as_str)
    }
}

/// The name of a user, as /etc/passwd has it.
pub(crate) fn user(uid: u32) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then(|| escaped(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn services_have_the_first_name_of_their_port() {
        let services =
            Services::parse("# services\nhttps 443/tcp # web\nhttp2 443/tcp\ndomain\t53/udp dns\nx 1/sctp\n");
        let names = [(Protocol::Tcp, 443), (Protocol::Udp, 53), (Protocol::Udp, 443)]
            .map(|(protocol, port)| services.name(protocol, port));
        assert_eq!(names, [Some("https"), Some("domain"), None]);
    }

    #[test]
    fn users_have_names() {
        assert_eq!((user(0).as_deref(), user(u32::MAX)), (Some("root"), None));
    }

    /// /etc/hosts has that of the loopback on every system; an address for documents has none.
    #[test]
    fn the_name_of_a_host_comes_later() {
        let hosts = Hosts::of_resolver();
        let (here, nowhere) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([192, 0, 2, 1]));
        assert_eq!((hosts.name(here), hosts.name(nowhere)), (None, None));
        let end = Instant::now() + Duration::from_secs(10);
        while hosts.name(here).is_none() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(hosts.name(here).as_deref(), Some("localhost"));
    }
}
