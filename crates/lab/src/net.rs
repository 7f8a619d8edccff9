//! The lab's network: a bridge on the machine, and a pair of interfaces for each host. Cables can be cut and slowed.

use crate::number::Number;
use crate::run::run;
use crate::{Host, Lab, Result};

/// The last byte of the machine's own address on the bridge.
const MACHINE: u8 = 1;

pub(crate) fn raise_bridge(number: Number) -> Result<()> {
    let bridge = format!("{}br", number.prefix());
    run(&["ip", "link", "add", &bridge, "type", "bridge"])?;
    run(&["ip", "address", "add", &format!("{}/24", number.address(MACHINE)), "dev", &bridge])?;
    run(&["ip", "link", "set", &bridge, "up"]).map(drop)
}

/// Gives the host a network namespace of its own, and in it an `eth0` whose MAC address stays over reboots.
pub(crate) fn connect(number: Number, host: &Host) -> Result<()> {
    let (bridge, link, netns) = (format!("{}br", number.prefix()), host.link(), host.netns());
    let [_, high, low, last] = host.address().octets();
    let mac = format!("52:54:00:{high:02x}:{low:02x}:{last:02x}");
    run(&["ip", "netns", "add", &netns])?;
    run(&["ip", "link", "add", &link, "type", "veth", "peer", "name", "eth0", "address", &mac, "netns", &netns])?;
    run(&["ip", "link", "set", &link, "master", &bridge, "up"]).map(drop)
}

impl Lab {
    /// Cuts the host's cable: packets vanish in both directions and nobody is told.
    pub fn cut(&self, host: &Host) -> Result<()> {
        run(&["ip", "link", "set", &host.link(), "down"]).map(drop)
    }

    /// Mends a cable that was cut.
    pub fn heal(&self, host: &Host) -> Result<()> {
        run(&["ip", "link", "set", &host.link(), "up"]).map(drop)
    }

    /// Limits what the host receives and sends, each, to a rate in the words of `tc`, e.g. `"100mbit"`.
    pub fn shape(&self, host: &Host, rate: &str) -> Result<()> {
        let link = host.link();
        run(&[&["tc", "qdisc", "replace", "dev", &link, "root"][..], &bucket(rate)].concat())?;
        let netns = host.netns();
        let inside = ["ip", "netns", "exec", &netns, "tc", "qdisc", "replace", "dev", "eth0", "root"];
        run(&[&inside[..], &bucket(rate)].concat()).map(drop)
    }

    /// Takes the limit of [`Lab::shape`] away.
    pub fn unshape(&self, host: &Host) -> Result<()> {
        run(&["tc", "qdisc", "del", "dev", &host.link(), "root"])?;
        run(&["ip", "netns", "exec", &host.netns(), "tc", "qdisc", "del", "dev", "eth0", "root"]).map(drop)
    }
}

/// The burst must hold a whole offloaded packet (64 KiB), or such packets are dropped for ever.
fn bucket(rate: &str) -> [&str; 7] {
    ["tbf", "rate", rate, "burst", "1mb", "latency", "50ms"]
}
