//! Disks that a test may fill, break and cut from their power: an ext4 in a file, mounted through a loop device.
//!
//! Mounting needs root; without it the test is skipped, loudly.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{has, is_root, run, skip, wait_for};

/// An ext4 of its own in a file, mounted through a loop device.
pub struct Disk {
    dir: TempDir,
    pub mount: PathBuf,
    options: &'static str,
}

impl Disk {
    /// One with room for any test; `None`, said loudly, where we may not mount.
    pub fn new(test: &str) -> Option<Disk> {
        Disk::make(test, 512, "loop,commit=300")
    }

    /// One that is soon full, and that turns read-only on damage.
    pub fn with_room(test: &str, mib: u64) -> Option<Disk> {
        Disk::make(test, mib, "loop,commit=300,errors=remount-ro")
    }

    fn make(test: &str, mib: u64, options: &'static str) -> Option<Disk> {
        if !is_root(test) || !has(test, "mkfs.ext4") || !has(test, "perl") {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("pointsman-disk-").tempdir().unwrap();
        let mount = dir.path().join("mount");
        fs::create_dir(&mount).unwrap();
        let image = fs::File::create(dir.path().join("image")).unwrap();
        image.set_len(mib << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(dir.path().join("image")));
        let disk = Disk { dir, mount, options };
        match disk.try_mount() {
            Ok(()) => Some(disk),
            Err(why) => {
                skip(test, &format!("a loop device cannot be mounted here: {why}"));
                None
            }
        }
    }

    /// The journal is written every five minutes rather than every five seconds: what is there after the cut is there
    /// because somebody synced it.
    fn try_mount(&self) -> Result<(), String> {
        let mut mount = Command::new("mount");
        let mount = mount.args(["-o", self.options]).arg(self.dir.path().join("image")).arg(&self.mount);
        let output = mount.output().map_err(|e| e.to_string())?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    pub fn cut_power(&self) {
        let powercut = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/powercut");
        run(Command::new("perl").arg(powercut).arg(&self.mount));
    }

    /// What the kernel does on meeting damage: from now on nothing can be written, until it is mounted again. False,
    /// said loudly, where a container does not let the kernel be asked.
    pub fn turn_read_only(&self, test: &str) -> bool {
        let mounts = fs::read_to_string("/proc/mounts").expect("/proc is mounted");
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == self.mount.to_str()).expect("it is mounted");
        let device = line.split(' ').next().and_then(|device| device.rsplit('/').next()).expect("a device");
        let broken = fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "a test");
        broken.as_ref().map_err(|error| skip(test, &format!("/sys/fs/ext4 cannot be written: {error}"))).is_ok()
    }

    /// Fills the disk until no more than `left` bytes are free.
    pub fn fill(&self, left: u64) {
        let mut ballast = fs::OpenOptions::new().create(true).append(true).open(self.ballast()).unwrap();
        loop {
            let surplus = self.free().saturating_sub(left);
            // The last block may be taken by somebody else meanwhile: full is full.
            let room = usize::try_from(surplus).expect("the disk is small");
            if room == 0 || ballast.write_all(&vec![0; room]).and_then(|()| ballast.sync_all()).is_err() {
                return;
            }
        }
    }

    /// Takes away what [`Disk::fill`] put there.
    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("the ballast is there");
    }

    fn free(&self) -> u64 {
        let stat = run(Command::new("stat").args(["-f", "-c", "%a %S"]).arg(&self.mount));
        stat.split_whitespace().map(|number| number.parse::<u64>().expect("a number")).product()
    }

    fn ballast(&self) -> PathBuf {
        self.mount.join("ballast")
    }

    pub fn mount_again(&self) {
        wait_for("the dead file system to be let go", || {
            Command::new("umount").arg(&self.mount).output().unwrap().status.success().then_some(())
        });
        self.try_mount().expect("it could be mounted before");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: where a test failed, its daemon may still hold files there for a moment.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).output();
    }
}
