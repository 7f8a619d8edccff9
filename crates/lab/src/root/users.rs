//! Extra users of a host.

use crate::run::{append, chmod, make_dir, write};
use crate::{Host, Result, Sudo};

/// The first extra user's id; theirs follow one another.
pub(crate) const FIRST_USER: u32 = 4201;
/// Of the password `lab` (`openssl passwd -6`): something to ask for where sudo wants one.
const PASSWORD: &str =
    "$6$kvmclonelab$9wTGK0zcLjDTxka4ndqszUyNO1ZZwEUO3NL6rVD9dnyhaGUZ4VT0hxKhOLQ.hJS.ChEXy6rqFy53oY8Y5V9wy0";

pub(crate) fn add(host: &Host) -> Result<()> {
    let root = host.root_dir();
    let etc = root.join("etc");
    for ((name, sudo), id) in host.spec().users.iter().zip(FIRST_USER..) {
        append(&etc.join("passwd"), &format!("{name}:x:{id}:{id}::/home/{name}:/bin/bash\n"))?;
        append(&etc.join("group"), &format!("{name}:x:{id}:\n"))?;
        append(&etc.join("shadow"), &format!("{name}:{PASSWORD}:19000:0:99999:7:::\n"))?;
        let home = root.join("home").join(name);
        make_dir(&home)?;
        chmod(&home, 0o700)?;
        let rule = match sudo {
            Sudo::Passwordless => format!("{name} ALL=(ALL:ALL) NOPASSWD: ALL\n"),
            Sudo::Password => format!("{name} ALL=(ALL:ALL) ALL\n"),
            Sudo::None => continue,
        };
        write(&etc.join("sudoers.d").join(name), rule, 0o440)?;
    }
    Ok(())
}
