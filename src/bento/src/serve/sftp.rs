//! SFTP, version 3, over a host's [`Root`].

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use russh_sftp::protocol::{
    Attrs, Data, File as Entry, FileAttributes, Handle, Name, OpenFlags, Status, StatusCode, Version,
};
use russh_sftp::server::StatusReply;

use super::root::{Root, Upload, normal};

/// How many files and directories a session may have open.
const OPEN: usize = 64;
/// How many entries of a directory go into one answer.
const ENTRIES: usize = 100;
/// The most that is read at once, in bytes: as OpenSSH's server does it.
const CHUNK: u32 = 255 * 1024;

/// One session.
pub(super) struct Files {
    root: Root,
    open: HashMap<String, Open>,
    next: u64,
}

/// Something that is open.
enum Open {
    Download(File),
    Upload(Upload),
    Directory { path: String, names: std::vec::IntoIter<String> },
}

impl Files {
    pub(super) fn new(root: Root) -> Self {
        Self { root, open: HashMap::new(), next: 0 }
    }

    /// Keeps something open under a new handle.
    fn keep(&mut self, id: u32, open: Open) -> Result<Handle, StatusReply> {
        if self.open.len() >= OPEN {
            return Err(StatusCode::Failure.with_message("too many files are open"));
        }
        self.next += 1;
        let handle = self.next.to_string();
        self.open.insert(handle.clone(), open);
        Ok(Handle { id, handle })
    }

    fn get(&self, handle: &str) -> Result<&Open, StatusReply> {
        self.open.get(handle).ok_or_else(|| StatusCode::Failure.with_message("nothing of that name is open"))
    }
}

/// What a failed operation is to the host.
fn refusal(error: &io::Error) -> StatusReply {
    let code = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => StatusCode::NoSuchFile,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StatusCode::PermissionDenied,
        // a link where there may be none
        _ if error.raw_os_error() == Some(Errno::ELOOP as i32) => StatusCode::PermissionDenied,
        _ => StatusCode::Failure,
    };
    let text = error.to_string();
    code.with_message(text.split(" (os error").next().unwrap_or_default())
}

/// The answer to what was done.
fn done(id: u32) -> Status {
    Status { id, status_code: StatusCode::Ok, error_message: "Ok".to_owned(), language_tag: "en".to_owned() }
}

/// The attributes of a file: nobody but the host sees them, and who owns it is none of its business.
fn attributes(metadata: &std::fs::Metadata) -> FileAttributes {
    let mut attributes = FileAttributes::from(metadata);
    attributes.uid = None;
    attributes.gid = None;
    attributes.permissions = Some(std::os::unix::fs::MetadataExt::mode(metadata));
    attributes
}

impl russh_sftp::server::Handler for Files {
    type Error = StatusReply;

    /// What a host has no right to: making directories and links, and changing modes, owners and times.
    fn unimplemented(&self) -> StatusReply {
        StatusCode::PermissionDenied.into()
    }

    async fn init(&mut self, _version: u32, _extensions: HashMap<String, String>) -> Result<Version, StatusReply> {
        Ok(Version::new())
    }

    async fn realpath(&mut self, id: u32, path: String) -> Result<Name, StatusReply> {
        Ok(Name { id, files: vec![Entry::dummy(normal(&path))] })
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, StatusReply> {
        let metadata = self.root.metadata(&path, true).map_err(|error| refusal(&error))?;
        Ok(Attrs { id, attrs: attributes(&metadata) })
    }

    async fn lstat(&mut self, id: u32, path: String) -> Result<Attrs, StatusReply> {
        let metadata = self.root.metadata(&path, false).map_err(|error| refusal(&error))?;
        Ok(Attrs { id, attrs: attributes(&metadata) })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Result<Attrs, StatusReply> {
        let metadata = match self.get(&handle)? {
            Open::Download(file) => file.metadata(),
            Open::Upload(upload) => upload.file.metadata(),
            Open::Directory { path, .. } => self.root.metadata(path, true),
        };
        Ok(Attrs { id, attrs: attributes(&metadata.map_err(|error| refusal(&error))?) })
    }

    async fn open(
        &mut self,
        id: u32,
        path: String,
        flags: OpenFlags,
        _attributes: FileAttributes,
    ) -> Result<Handle, StatusReply> {
        let changes = OpenFlags::WRITE | OpenFlags::APPEND | OpenFlags::CREATE | OpenFlags::TRUNCATE;
        let open = if flags.intersects(changes) {
            let mut how = OFlag::O_RDWR;
            how.set(OFlag::O_CREAT, flags.contains(OpenFlags::CREATE));
            how.set(OFlag::O_EXCL, flags.contains(OpenFlags::CREATE | OpenFlags::EXCLUDE));
            how.set(OFlag::O_TRUNC, flags.contains(OpenFlags::TRUNCATE));
            Open::Upload(self.root.write(&path, how).map_err(|error| refusal(&error))?)
        } else {
            Open::Download(self.root.read(&path).map_err(|error| refusal(&error))?)
        };
        self.keep(id, open)
    }

    async fn close(&mut self, id: u32, handle: String) -> Result<Status, StatusReply> {
        match self.open.remove(&handle) {
            Some(Open::Upload(upload)) => {
                // what the host takes for delivered must be
                upload.file.sync_all().map_err(|error| refusal(&error))?;
                Ok(done(id))
            }
            Some(_) => Ok(done(id)),
            None => Err(StatusCode::Failure.into()),
        }
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, length: u32) -> Result<Data, StatusReply> {
        let file = match self.get(&handle)? {
            Open::Download(file) => file,
            Open::Upload(upload) => &*upload.file,
            Open::Directory { .. } => return Err(StatusCode::Failure.into()),
        };
        let mut data = vec![0; length.min(CHUNK) as usize];
        let count = file.read_at(&mut data, offset).map_err(|error| refusal(&error))?;
        if count == 0 {
            return Err(StatusCode::Eof.into());
        }
        data.truncate(count);
        Ok(Data { id, data })
    }

    async fn write(&mut self, id: u32, handle: String, offset: u64, data: Vec<u8>) -> Result<Status, StatusReply> {
        let Open::Upload(upload) = self.get(&handle)? else { return Err(StatusCode::PermissionDenied.into()) };
        upload.write(&data, offset).map_err(|error| refusal(&error))?;
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, StatusReply> {
        let names = self.root.list(&path).map_err(|error| refusal(&error))?.into_iter();
        self.keep(id, Open::Directory { path, names })
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Result<Name, StatusReply> {
        let Some(Open::Directory { path, names }) = self.open.get_mut(&handle) else {
            return Err(StatusCode::Failure.into());
        };
        let mut files = Vec::new();
        for name in names.take(ENTRIES) {
            // one that is gone meanwhile is not there
            if let Ok(metadata) = self.root.metadata(&format!("{path}/{name}"), false) {
                files.push(Entry::new(name, attributes(&metadata)));
            }
        }
        if files.is_empty() { Err(StatusCode::Eof.into()) } else { Ok(Name { id, files }) }
    }

    async fn readlink(&mut self, id: u32, path: String) -> Result<Name, StatusReply> {
        let target = self.root.link(&path).map_err(|error| refusal(&error))?;
        Ok(Name { id, files: vec![Entry::dummy(target)] })
    }

    async fn remove(&mut self, id: u32, path: String) -> Result<Status, StatusReply> {
        self.root.remove(&path).map_err(|error| refusal(&error))?;
        Ok(done(id))
    }

    async fn rename(&mut self, id: u32, old: String, new: String) -> Result<Status, StatusReply> {
        self.root.rename(&old, &new).map_err(|error| refusal(&error))?;
        Ok(done(id))
    }
}
