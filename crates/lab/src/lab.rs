//! A lab: a private network and the hosts in it, and their common end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, PoisonError};

use crate::host::{Host, Record};
use crate::number::{self, Number};
use crate::run::{make_dir, write};
use crate::{HostSpec, LabError, Result, boot, net, root, ssh};

/// A private network with hosts in it. Dropping it removes every trace; so does the death of the process that made it.
#[derive(Debug)]
pub struct Lab {
    number: Number,
    place: PathBuf,
    dir: PathBuf,
    hosts: Mutex<Vec<Host>>,
    /// Hosts that were promised a name and an address, raised or not.
    records: Mutex<Vec<Record>>,
    /// Present while this process owns the lab; dropped last, for it gives the number back.
    owned: Option<Owned>,
}

#[derive(Debug)]
struct Owned {
    watcher: Child,
    _lock: File,
}

impl Lab {
    /// A new, empty lab of this process. Removes labs whose owner died on the way.
    pub fn new() -> Result<Self> {
        let (number, lock) = Number::take()?;
        let watcher = number.watch()?;
        let owned = Some(Owned { watcher, _lock: lock });
        let lab = Self::of(number, Vec::new(), owned);
        write(&lab.place.join("owner"), std::process::id().to_string(), 0o600)?;
        make_dir(&lab.place.join("hosts"))?;
        make_dir(&lab.dir)?;
        ssh::lay_out_lab(&lab.place)?;
        net::raise_bridge(number)?;
        Ok(lab)
    }

    /// A lab that an earlier process raised to stay ([`Lab::keep`]); without an id, the only one there is.
    pub fn attach(id: Option<&str>) -> Result<Self> {
        let number = match id {
            Some(id) => Number::parse(id)?,
            None => match number::all()?.into_iter().filter(|number| number.is_kept()).collect::<Vec<_>>()[..] {
                [one] => one,
                [] => return Err(LabError::Refused("no lab is up".to_owned())),
                _ => return Err(LabError::Refused("several labs are up: name one".to_owned())),
            },
        };
        if !number.is_kept() {
            return Err(LabError::Refused(format!("lab {number} is not up")));
        }
        let hosts = Host::load_all(&number.dir())?;
        Ok(Self::of(number, hosts, None))
    }

    fn of(number: Number, hosts: Vec<Host>, owned: Option<Owned>) -> Self {
        let place = number.dir();
        let records = Mutex::new(hosts.iter().map(|host| host.record().clone()).collect());
        Self { number, dir: place.join("scratch"), place, hosts: Mutex::new(hosts), records, owned }
    }

    /// The ids of the labs that were raised to stay.
    pub fn kept() -> Result<Vec<String>> {
        Ok(number::all()?.into_iter().filter(|number| number.is_kept()).map(|number| number.to_string()).collect())
    }

    /// Lets the lab outlive this process, until [`Lab::down`].
    pub fn keep(mut self) -> Result<String> {
        write(&self.place.join("kept"), "", 0o600)?;
        if let Some(mut owned) = self.owned.take() {
            stop(&mut owned.watcher);
        }
        Ok(self.id())
    }

    /// Removes the lab now and says what went wrong, which a drop cannot.
    pub fn down(mut self) -> Result<()> {
        self.end(true)
    }

    /// What tells this lab from others on the machine.
    #[must_use]
    pub fn id(&self) -> String {
        self.number.to_string()
    }

    /// A private directory of the lab outside all hosts; goes with the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// An `ssh_config` with which the machine itself reaches every host by its name, with strict host keys.
    #[must_use]
    pub fn ssh_config(&self) -> PathBuf {
        ssh::config_path(&self.place)
    }

    /// Raises one host; returns when its sshd and libvirt answer.
    pub fn host(&self, spec: HostSpec) -> Result<Host> {
        self.raise(self.promise(spec)?)
    }

    fn raise(&self, record: Record) -> Result<Host> {
        let host = Host::new(&self.place, self.number, record);
        root::lay_out(&host)?;
        ssh::lay_out_host(&self.place, &host)?;
        {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            ssh::introduce(&self.place, &host, &hosts)?;
            hosts.push(host.clone());
            hosts.sort_by_key(|host| host.record().index);
        }
        net::connect(self.number, &host)?;
        boot::start(&host)?;
        Ok(host)
    }

    /// Raises several hosts at the same time; in the order of the specs.
    pub fn hosts(&self, specs: Vec<HostSpec>) -> Result<Vec<Host>> {
        let records = specs.into_iter().map(|spec| self.promise(spec)).collect::<Result<Vec<_>>>()?;
        std::thread::scope(|scope| {
            let raising: Vec<_> = records.into_iter().map(|record| scope.spawn(|| self.raise(record))).collect();
            let joined = raising.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(LabError::Refused("raising a host panicked".to_owned())))
            });
            // All are joined before the first error is returned.
            joined.collect::<Vec<_>>().into_iter().collect()
        })
    }

    /// A host of this lab by its name.
    pub fn find(&self, name: &str) -> Result<Host> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let found = hosts.iter().find(|host| host.name() == name).cloned();
        found.ok_or_else(|| LabError::Refused(format!("lab {} has no host {name}", self.number)))
    }

    /// The hosts that are raised, in the order they were asked for.
    #[must_use]
    pub fn all_hosts(&self) -> Vec<Host> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn promise(&self, spec: HostSpec) -> Result<Record> {
        spec.check()?;
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.iter().any(|record| record.spec.name == spec.name) {
            return Err(LabError::Refused(format!("there is a host {} already", spec.name)));
        }
        let index = u8::try_from(records.len()).ok().filter(|index| *index < 200);
        let index = index.ok_or_else(|| LabError::Refused("a lab has at most 200 hosts".to_owned()))?;
        let record = Record { index, address: self.number.address(10 + index), spec };
        records.push(record.clone());
        Ok(record)
    }

    fn end(&mut self, kept: bool) -> Result<()> {
        let result = match self.owned.take() {
            Some(mut owned) => {
                let result = self.number.tear_down(true);
                stop(&mut owned.watcher);
                result
            }
            None if kept => match self.number.try_lock()? {
                Some(_lock) => self.number.tear_down(true),
                None => Err(LabError::Refused(format!("lab {} is in use", self.number))),
            },
            // A kept lab goes on without us.
            None => return Ok(()),
        };
        for host in self.hosts.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            host.reap();
        }
        result
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Nobody is left to be told; the next lab's sweep tries again.
        let _ = self.end(false);
    }
}

/// Kills and reaps the watcher: its work is done, or not wanted.
fn stop(watcher: &mut Child) {
    let _ = watcher.kill();
    let _ = watcher.wait();
}

/// Where a host's own files are, outside the host.
pub(crate) fn host_dir(lab: &Path, name: &str) -> PathBuf {
    lab.join("hosts").join(name)
}
