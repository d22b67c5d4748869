//! The pickles of `torch.save`, without running anything: a machine that knows the opcodes of data
//! and, by name, the few functions that rebuild tensors. Every other name is an error that says
//! it. Bytes enter; values in one arena, bounded in number, leave.

mod machine;

use super::tensor::{Encoding, FLOAT64};
pub(in crate::checkpoint) use machine::read;

/// A place in the arena.
pub(in crate::checkpoint) type Id = usize;

/// A Python value.
#[derive(Clone, Debug)]
pub(in crate::checkpoint) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// A whole number of more than 64 bits: its bytes, little-endian.
    Long(Span),
    Float,
    Text(Span),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Box<Storage>),
    Tensor(Box<TensorView>),
}

/// A range of the file's bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::checkpoint) struct Span {
    start: usize,
    len: usize,
}

/// The names that a pickle may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::checkpoint) enum Global {
    OrderedDict,
    Size,
    RebuildTensor,
    RebuildTensorV2,
    RebuildTensorV3,
    RebuildParameter,
    /// A storage class with its type of value; `None` for plain bytes.
    StorageClass(Option<Encoding>),
    Dtype(Encoding),
}

/// The bytes behind one or more tensors, by the name that the file gives them.
#[derive(Clone, Debug)]
pub(in crate::checkpoint) struct Storage {
    pub(in crate::checkpoint) key: String,
    /// `None` for plain bytes.
    pub(in crate::checkpoint) encoding: Option<Encoding>,
    /// Values, or bytes of an untyped one.
    pub(in crate::checkpoint) count: u64,
}

/// A tensor as a view of a storage.
#[derive(Clone, Debug)]
pub(in crate::checkpoint) struct TensorView {
    pub(in crate::checkpoint) storage: Storage,
    pub(in crate::checkpoint) encoding: Encoding,
    /// First value.
    pub(in crate::checkpoint) offset: u64,
    pub(in crate::checkpoint) shape: Vec<u64>,
    pub(in crate::checkpoint) strides: Vec<u64>,
}

/// A pickle that has been read.
#[derive(Debug)]
pub(in crate::checkpoint) struct Pickle<'a> {
    bytes: &'a [u8],
    values: Vec<Value>,
    root: Id,
}

impl<'a> Pickle<'a> {
    pub(in crate::checkpoint) fn root(&self) -> &Value {
        &self.values[self.root]
    }

    pub(in crate::checkpoint) fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    pub(in crate::checkpoint) fn text(&self, id: Id) -> Option<&'a str> {
        match self.values[id] {
            Value::Text(span) => text_of(self.bytes, span),
            _ => None,
        }
    }

    /// The little-endian bytes of a number beyond 64 bits.
    pub(in crate::checkpoint) fn long(&self, value: &Value) -> Option<&'a [u8]> {
        match value {
            Value::Long(span) => self.bytes.get(span.start..span.start + span.len),
            _ => None,
        }
    }

    /// Every storage that the pickle names.
    pub(in crate::checkpoint) fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.values.iter().filter_map(|value| match value {
            Value::Storage(storage) => Some(&**storage),
            _ => None,
        })
    }
}

fn text_of(bytes: &[u8], span: Span) -> Option<&str> {
    std::str::from_utf8(bytes.get(span.start..span.start.checked_add(span.len)?)?).ok()
}

/// What a name stands for, if it is one of those that tensors need.
fn allowed(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch", "Size") => Global::Size,
        ("torch._utils", "_rebuild_tensor") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensorV2,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTensorV3,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch.storage", "UntypedStorage") => Global::StorageClass(None),
        ("torch", name) => match name.strip_suffix("Storage") {
            Some("Untyped") => Global::StorageClass(None),
            Some(class) => Global::StorageClass(Some(encoding(class)?)),
            None => Global::Dtype(encoding(name)?),
        },
        _ => return None,
    })
}

/// The type of a storage class (`Half`) or of a dtype (`float16`).
fn encoding(name: &str) -> Option<Encoding> {
    use puna_kernels::Format;
    Some(match name {
        "Float" | "float32" => Encoding::Weight(Format::F32),
        "Half" | "float16" => Encoding::Weight(Format::F16),
        "BFloat16" | "bfloat16" => Encoding::Weight(Format::Bf16),
        "Double" | "float64" => FLOAT64,
        "Long" | "int64" => Encoding::Other("int64", 8),
        "Int" | "int32" => Encoding::Other("int32", 4),
        "Short" | "int16" => Encoding::Other("int16", 2),
        "Char" | "int8" => Encoding::Other("int8", 1),
        "Byte" | "uint8" => Encoding::Other("uint8", 1),
        "Bool" | "bool" => Encoding::Other("bool", 1),
        "uint16" => Encoding::Other("uint16", 2),
        "uint32" => Encoding::Other("uint32", 4),
        "uint64" => Encoding::Other("uint64", 8),
        "float8_e4m3fn" => Encoding::Other("float8_e4m3", 1),
        "float8_e5m2" => Encoding::Other("float8_e5m2", 1),
        _ => return None,
    })
}
