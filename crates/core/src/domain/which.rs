//! Which of several devices of one kind is meant: what a person knows it by at its host.

use super::tree::Element;

/// The address, name or path behind a device, in words; nothing where the definition names none.
pub(super) fn which(device: &Element) -> Option<String> {
    match device.name.as_str() {
        "hostdev" => host_device(device),
        "interface" => nic(device),
        "filesystem" => directory(device),
        "memory" => backed(device.attr("model"), device.text_at(&["source", "path"])),
        "input" => {
            let source = device.child("source");
            backed(device.attr("type"), source.and_then(|source| source.attr("dev").or_else(|| source.attr("evdev"))))
        }
        "rng" => {
            let backend = device.child("backend")?;
            let connects = backend.all("source").find(|source| source.attr("mode") == Some("connect"));
            let end = connects.or_else(|| backend.child("source")).and_then(end);
            backed(backend.attr("type"), end.as_deref())
        }
        "smartcard" => backed(device.attr("mode"), device.text_at(&["database"])),
        "shmem" => device.attr("name").map(str::to_owned),
        "lease" => {
            let key = device.text_at(&["key"])?;
            Some(device.text_at(&["lockspace"]).map_or_else(|| key.to_owned(), |space| format!("{key} in {space}")))
        }
        "pstore" => device.text_at(&["path"]).map(str::to_owned),
        "tpm" => device.attr_at(&["backend", "device"], "path").map(str::to_owned),
        _ => None,
    }
}

/// Where the other end of a character device is: formatdomain, "Host interface".
pub(super) fn end(source: &Element) -> Option<String> {
    let address = || {
        let host = source.attr("host").unwrap_or("any address");
        Some(format!("{host}, port {}", source.attr("service")?))
    };
    source.attr("path").map(str::to_owned).or_else(address)
}

/// `a` or `an`, as the element's name wants it.
pub(super) fn with_article(element: &Element) -> String {
    let article = if element.name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} <{}>", element.name)
}

/// What a device is, and what it stands on.
fn backed(kind: Option<&str>, by: Option<&str>) -> Option<String> {
    let parts: Vec<&str> = [kind, by].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// formatdomain, "Host device assignment".
fn host_device(device: &Element) -> Option<String> {
    let source = device.child("source")?;
    let address = source.child("address");
    match device.attr("type")? {
        "pci" => Some(format!("PCI device {}", pci(address?)?)),
        "usb" => Some(format!("USB device {}", usb(source)?)),
        "mdev" => Some(format!("mediated device {}", address?.attr("uuid")?)),
        "scsi" => Some(format!("SCSI device {}", scsi(source)?)),
        "scsi_host" => Some(format!("SCSI host {}", source.attr("wwpn")?)),
        // Those of containers, named by what they are.
        _ => source.children.first().map(|named| named.trimmed().to_owned()).filter(|name| !name.is_empty()),
    }
}

/// As `lspci -D` shows it.
fn pci(address: &Element) -> Option<String> {
    let part = |name| hex(address.attr(name).unwrap_or("0"));
    let (domain, bus, slot, function) = (part("domain")?, part("bus")?, part("slot")?, part("function")?);
    Some(format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"))
}

fn hex(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// As `lsusb` shows it.
fn usb(source: &Element) -> Option<String> {
    let id = |name| source.attr_at(&[name], "id").map(|id| id.trim_start_matches("0x"));
    if let (Some(vendor), Some(product)) = (id("vendor"), id("product")) {
        return Some(format!("{vendor}:{product}"));
    }
    let address = source.child("address")?;
    Some(format!("{} on bus {}", address.attr("device")?, address.attr("bus")?))
}

/// As `lsscsi` shows it, or the name of a unit that is reached over a network.
fn scsi(source: &Element) -> Option<String> {
    let Some(adapter) = source.attr_at(&["adapter"], "name") else { return source.attr("name").map(str::to_owned) };
    let part = |name| source.attr_at(&["address"], name).unwrap_or("0");
    Some(format!("{adapter} {}:{}:{}", part("bus"), part("target"), part("unit")))
}

fn nic(device: &Element) -> Option<String> {
    let source = device.child("source");
    let address = source.and_then(|source| Some(format!("PCI device {}", pci(source.child("address")?)?)));
    let named = || source.and_then(|source| source.attr("dev").or_else(|| source.attr("path"))).map(str::to_owned);
    let mac = device.attr_at(&["mac"], "address");
    backed(mac, address.or_else(named).as_deref())
}

/// formatdomain, "Filesystems": the attribute that names the source depends on the kind.
fn directory(device: &Element) -> Option<String> {
    let source = device.child("source");
    let names = ["dir", "file", "dev", "name", "socket", "pool", "usage"];
    let from = source.and_then(|source| names.iter().find_map(|name| source.attr(name)));
    match (from, device.attr_at(&["target"], "dir")) {
        (Some(from), Some(tag)) => Some(format!("{from}, as {tag}")),
        (from, tag) => from.or(tag).map(str::to_owned),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn told(xml: &str) -> Option<String> {
        which(&Element::parse(xml).unwrap())
    }

    #[test]
    fn host_devices_are_told_as_their_host_lists_them() {
        let hostdev = |kind: &str, source: &str| told(&format!("<hostdev type='{kind}'>{source}</hostdev>"));
        for (kind, source, words) in [
            ("pci", "<source><address domain='0x0' bus='0x0a' slot='0x1f' function='0x7'/></source>", "0000:0a:1f.7"),
            ("usb", "<source><vendor id='0x1234'/><product id='0xbeef'/></source>", "1234:beef"),
            ("usb", "<source><address bus='3' device='4'/></source>", "4 on bus 3"),
            ("mdev", "<source><address uuid='c2177883-f1bb'/></source>", "c2177883-f1bb"),
            ("scsi", "<source><adapter name='scsi_host2'/><address bus='0' target='1' unit='5'/></source>", "2 0:1:5"),
            ("scsi", "<source protocol='iscsi' name='iqn.x/1'/>", "iqn.x/1"),
            ("scsi_host", "<source protocol='vhost' wwpn='naa.5'/>", "naa.5"),
            ("misc", "<source><char>/dev/input0</char></source>", "/dev/input0"),
        ] {
            let told = hostdev(kind, source).unwrap_or_default();
            assert!(told.ends_with(words), "{source}: {told}");
        }
        assert_eq!(hostdev("pci", ""), None);
        assert_eq!(hostdev("pci", "<source><address bus='x'/></source>"), None);
    }

    #[test]
    fn other_devices_are_told_by_what_they_stand_on() {
        for (xml, words) in [
            (
                "<interface type='hostdev'><mac address='52:54:00:00:00:01'/><source><address type='pci' bus='1'/>\
                 </source></interface>",
                "52:54:00:00:00:01, PCI device 0000:01:00.0",
            ),
            ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", "/dev/vhost-vdpa-0"),
            ("<filesystem><source dir='/srv'/><target dir='share0'/></filesystem>", "/srv, as share0"),
            ("<filesystem><target dir='share0'/></filesystem>", "share0"),
            ("<memory model='nvdimm'><source><path>/n</path></source></memory>", "nvdimm, /n"),
            ("<input type='evdev'><source dev='/dev/input/event1'/></input>", "evdev, /dev/input/event1"),
            ("<input type='passthrough'><source evdev='/e'/></input>", "passthrough, /e"),
            (
                "<rng><backend model='egd' type='udp'><source mode='bind' service='1'/>\
                 <source mode='connect' host='h' service='2'/></backend></rng>",
                "udp, h, port 2",
            ),
            ("<smartcard mode='host'/>", "host"),
            ("<shmem name='x'/>", "x"),
            ("<lease><lockspace>s</lockspace><key>k</key></lease>", "k in s"),
            ("<pstore><path>/p</path></pstore>", "/p"),
            ("<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", "/dev/tpm0"),
        ] {
            assert_eq!(told(xml).as_deref(), Some(words), "{xml}");
        }
        assert_eq!(told("<video/>"), None);
    }

    #[test]
    fn names_get_their_article() {
        let with = |xml| with_article(&Element::parse(xml).unwrap());
        assert_eq!((with("<input/>"), with("<rng/>")), ("an <input>".to_owned(), "a <rng>".to_owned()));
    }
}
