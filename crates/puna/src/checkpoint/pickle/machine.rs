//! The machine that reads a pickle: a stack, marks, a memo, and no way to call anything but the
//! functions that [`allowed`] names. Opcodes enter, values leave; each step and value is counted.

use std::collections::HashMap;

use super::super::error::{CheckpointError, Fault};
use super::super::reader::Reader;
use super::{Global, Id, Pickle, Span, Storage, TensorView, Value, allowed, text_of};

/// Values in one pickle; a model of 405 billion weights has some 25,000.
const MAX_VALUES: usize = 1 << 18;
/// Arguments of a call, and bytes of a name.
const MAX_ARGUMENTS: usize = 16;
const MAX_NAME: usize = 256;
/// Opcodes in one pickle.
const MAX_OPCODES: usize = 1 << 21;

/// Reads one pickle of `bytes`, the whole file, from where `reader` stands to its STOP.
pub(in crate::checkpoint) fn read<'a>(
    reader: &mut Reader<'a>,
    bytes: &'a [u8],
) -> Result<Pickle<'a>, CheckpointError> {
    let mut machine = Machine {
        reader,
        bytes,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    for _ in 0..MAX_OPCODES {
        if machine.step()? {
            let root = machine.pop()?;
            return Ok(Pickle { bytes, values: machine.values, root });
        }
    }
    Err(machine.too_large(MAX_OPCODES))
}

const FIELD: &str = "pickle";

struct Machine<'r, 'a> {
    reader: &'r mut Reader<'a>,
    bytes: &'a [u8],
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Pairs that went from lists to dicts.
    copied: usize,
}

impl<'a> Machine<'_, 'a> {
    fn bad(&self, why: impl Into<String>) -> CheckpointError {
        self.reader.malformed(FIELD, why)
    }

    fn too_large(&self, limit: usize) -> CheckpointError {
        let limit = limit as u64;
        self.reader.error(FIELD, Fault::TooLarge { value: limit + 1, limit })
    }

    fn push_id(&mut self, id: Id) -> Result<(), CheckpointError> {
        if self.stack.len() >= MAX_VALUES {
            return Err(self.too_large(MAX_VALUES));
        }
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<(), CheckpointError> {
        if self.values.len() >= MAX_VALUES {
            return Err(self.too_large(MAX_VALUES));
        }
        self.values.push(value);
        self.push_id(self.values.len() - 1)
    }

    fn pop(&mut self) -> Result<Id, CheckpointError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.bad("takes a value from an empty stack"));
        }
        self.stack.pop().ok_or_else(|| self.bad("takes a value from an empty stack"))
    }

    fn top(&self) -> Result<Id, CheckpointError> {
        self.stack.last().copied().ok_or_else(|| self.bad("reads the top of an empty stack"))
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, CheckpointError> {
        let height = self.marks.pop().ok_or_else(|| self.bad("closes a mark that is not open"))?;
        if height > self.stack.len() {
            return Err(self.bad("closes a mark above the stack"));
        }
        Ok(self.stack.split_off(height))
    }

    /// One opcode; true at STOP.
    fn step(&mut self) -> Result<bool, CheckpointError> {
        let opcode = self.reader.u8(FIELD)?;
        match opcode {
            b'.' => return Ok(true),
            0x80 => drop(self.reader.u8(FIELD)?),
            0x95 => drop(self.reader.u64(FIELD)?),
            b'(' if self.marks.len() >= MAX_VALUES => return Err(self.too_large(MAX_VALUES)),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let id = self.top()?;
                self.push_id(id)?;
            }
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'J' | b'K' | b'M' | 0x8a | 0x8b => self.number(opcode)?,
            b'G' => {
                self.reader.take(FIELD, 8)?;
                self.push(Value::Float)?;
            }
            b'X' | 0x8c | 0x8d | b'U' | b'T' => self.string(opcode)?,
            b']' => self.push(Value::List(Vec::new()))?,
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b't' | b'l' | b'd' | 0x85..=0x87 => self.collect(opcode)?,
            b'a' | b'e' => self.append(opcode)?,
            b's' | b'u' => self.set_items(opcode)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memo(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            other => {
                let why =
                    format!("the pickle uses opcode 0x{other:02x}, which no tensor file needs");
                return Err(self.reader.error(FIELD, Fault::Unsupported(why)));
            }
        }
        Ok(false)
    }

    fn number(&mut self, opcode: u8) -> Result<(), CheckpointError> {
        let value = match opcode {
            b'K' => i64::from(self.reader.u8(FIELD)?),
            b'M' => i64::from(self.reader.u16(FIELD)?),
            b'J' => i64::from(self.reader.u32(FIELD)?.cast_signed()),
            _ => return self.long(opcode),
        };
        self.push(Value::Int(value))
    }

    /// A whole number of any length, two's complement, little-endian.
    fn long(&mut self, opcode: u8) -> Result<(), CheckpointError> {
        let len = match opcode {
            0x8a => u64::from(self.reader.u8(FIELD)?),
            _ => u64::from(self.reader.u32(FIELD)?),
        };
        let start = self.reader.position();
        let bytes = self.reader.take(FIELD, len)?;
        if bytes.len() > 8 {
            return self.push(Value::Long(Span { start, len: bytes.len() }));
        }
        let sign = bytes.last().is_some_and(|b| *b >= 0x80);
        let mut wide = [if sign { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    fn string(&mut self, opcode: u8) -> Result<(), CheckpointError> {
        let len = match opcode {
            0x8c | b'U' => u64::from(self.reader.u8(FIELD)?),
            0x8d => self.reader.u64(FIELD)?,
            _ => u64::from(self.reader.u32(FIELD)?),
        };
        let start = self.reader.position();
        let bytes = self.reader.take(FIELD, len)?;
        if std::str::from_utf8(bytes).is_err() {
            return Err(self.bad("holds a string that is not UTF-8"));
        }
        self.push(Value::Text(Span { start, len: bytes.len() }))
    }

    fn collect(&mut self, opcode: u8) -> Result<(), CheckpointError> {
        if matches!(opcode, 0x85..=0x87) {
            let len = usize::from(opcode - 0x84);
            let mut items = Vec::with_capacity(len);
            for _ in 0..len {
                items.push(self.pop()?);
            }
            items.reverse();
            return self.push(Value::Tuple(items));
        }
        let items = self.pop_mark()?;
        match opcode {
            b't' => self.push(Value::Tuple(items)),
            b'l' => self.push(Value::List(items)),
            _ => {
                let pairs = self.pairs(&items)?;
                self.push(Value::Dict(pairs))
            }
        }
    }

    fn pairs(&self, items: &[Id]) -> Result<Vec<(Id, Id)>, CheckpointError> {
        if !items.len().is_multiple_of(2) {
            return Err(self.bad("gives a dict a key without a value"));
        }
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn append(&mut self, opcode: u8) -> Result<(), CheckpointError> {
        let items = if opcode == b'a' { vec![self.pop()?] } else { self.pop_mark()? };
        let list = self.top()?;
        match &mut self.values[list] {
            Value::List(list) => list.extend(items),
            _ => return Err(self.bad("appends to what is not a list")),
        }
        Ok(())
    }

    fn set_items(&mut self, opcode: u8) -> Result<(), CheckpointError> {
        let items = if opcode == b's' {
            let value = self.pop()?;
            vec![self.pop()?, value]
        } else {
            self.pop_mark()?
        };
        let pairs = self.pairs(&items)?;
        let dict = self.top()?;
        match &mut self.values[dict] {
            Value::Dict(dict) => dict.extend(pairs),
            _ => return Err(self.bad("sets items of what is not a dict")),
        }
        Ok(())
    }

    fn memo(&mut self, opcode: u8) -> Result<(), CheckpointError> {
        let index = match opcode {
            b'q' | b'h' => u32::from(self.reader.u8(FIELD)?),
            b'r' | b'j' => self.reader.u32(FIELD)?,
            _ => u32::try_from(self.memo.len()).unwrap_or(u32::MAX),
        };
        if matches!(opcode, b'h' | b'j') {
            let Some(id) = self.memo.get(&index).copied() else {
                return Err(self.bad(format!("recalls value {index}, which it never stored")));
            };
            return self.push_id(id);
        }
        if self.memo.len() >= MAX_VALUES {
            return Err(self.too_large(MAX_VALUES));
        }
        let id = self.top()?;
        self.memo.insert(index, id);
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, CheckpointError> {
        let start = self.reader.position();
        for len in 0..=MAX_NAME {
            if self.reader.u8(FIELD)? == b'\n' {
                let line = text_of(self.bytes, Span { start, len });
                return line.ok_or_else(|| self.bad("names a function that is not UTF-8"));
            }
        }
        Err(self.bad("names a function of more than 256 bytes"))
    }

    fn global(&mut self, opcode: u8) -> Result<(), CheckpointError> {
        let (module, name) = if opcode == b'c' {
            (self.line()?.to_owned(), self.line()?.to_owned())
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            (self.owned_text(module)?, self.owned_text(name)?)
        };
        match allowed(&module, &name) {
            Some(global) => self.push(Value::Global(global)),
            None => {
                let fault = Fault::ForbiddenGlobal(format!("{module}.{name}"));
                Err(self.reader.error(FIELD, fault))
            }
        }
    }

    fn owned_text(&self, id: Id) -> Result<String, CheckpointError> {
        match self.values[id] {
            // Names are copied, and many tensors may share one: long ones would fill the memory.
            Value::Text(span) if span.len <= MAX_NAME => {
                text_of(self.bytes, span).map(str::to_owned)
            }
            _ => None,
        }
        .ok_or_else(|| self.bad("has another value where a short string belongs"))
    }

    fn tuple(&self, id: Id) -> Result<&[Id], CheckpointError> {
        match &self.values[id] {
            Value::Tuple(items) | Value::List(items) => Ok(items),
            _ => Err(self.bad("has another value where a tuple belongs")),
        }
    }

    fn count(&self, id: Id) -> Result<u64, CheckpointError> {
        match self.values[id] {
            Value::Int(n) => u64::try_from(n).ok(),
            _ => None,
        }
        .ok_or_else(|| self.bad("has another value where a size belongs"))
    }

    fn counts(&self, id: Id) -> Result<Vec<u64>, CheckpointError> {
        const MAX_DIMS: usize = 8;
        let items = self.tuple(id)?;
        if items.len() > MAX_DIMS {
            return Err(self.bad(format!("rebuilds a tensor of {} dimensions", items.len())));
        }
        items.iter().map(|id| self.count(*id)).collect()
    }

    /// `('storage', class, key, device, count[, view])`.
    fn persistent(&mut self) -> Result<(), CheckpointError> {
        let id = self.pop()?;
        let items = self.tuple(id)?;
        let (tag, class, key, count) = match *items {
            [tag, class, key, _, count] => (tag, class, key, count),
            [tag, class, key, _, count, view] if matches!(self.values[view], Value::None) => {
                (tag, class, key, count)
            }
            _ => return Err(self.bad("names a storage in an unknown way")),
        };
        if self.owned_text(tag)? != "storage" {
            return Err(self.bad("names something other than a storage"));
        }
        let Value::Global(Global::StorageClass(encoding)) = self.values[class] else {
            return Err(self.bad("names a storage of no known class"));
        };
        let (key, count) = (self.owned_text(key)?, self.count(count)?);
        self.push(Value::Storage(Box::new(Storage { key, encoding, count })))
    }

    fn reduce(&mut self) -> Result<(), CheckpointError> {
        let (args, callable) = (self.pop()?, self.pop()?);
        let args = self.tuple(args)?;
        if args.len() > MAX_ARGUMENTS {
            return Err(self.bad(format!("calls a function with {} arguments", args.len())));
        }
        let args = args.to_vec();
        let Value::Global(global) = self.values[callable] else {
            return Err(self.bad("calls what is not a function"));
        };
        match (global, &*args) {
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            (Global::OrderedDict, [items]) => self.ordered_dict(*items),
            (Global::Size, [items]) => self.push_id(*items),
            (Global::RebuildParameter, [tensor, _, _]) => self.push_id(*tensor),
            (Global::RebuildTensor, [storage, offset, shape, strides])
            | (Global::RebuildTensorV2, [storage, offset, shape, strides, _, _, ..]) => {
                self.tensor(*storage, *offset, (*shape, *strides), None)
            }
            (Global::RebuildTensorV3, [storage, offset, shape, strides, _, _, dtype, ..]) => {
                self.tensor(*storage, *offset, (*shape, *strides), Some(*dtype))
            }
            _ => Err(self.bad(format!("calls {global:?} with {} arguments", args.len()))),
        }
    }

    /// A dict of a list of pairs. The list is copied, so that copies are counted.
    fn ordered_dict(&mut self, items: Id) -> Result<(), CheckpointError> {
        let items = self.tuple(items)?;
        let copied = self.copied + items.len();
        if copied > MAX_VALUES {
            return Err(self.too_large(MAX_VALUES));
        }
        let pair = |id: &Id| match *self.tuple(*id)? {
            [key, value] => Ok((key, value)),
            _ => Err(self.bad("gives a dict an item that is not a pair")),
        };
        let pairs = items.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
        self.copied = copied;
        self.push(Value::Dict(pairs))
    }

    fn tensor(
        &mut self,
        storage: Id,
        offset: Id,
        (shape, strides): (Id, Id),
        dtype: Option<Id>,
    ) -> Result<(), CheckpointError> {
        let Value::Storage(storage) = &self.values[storage] else {
            return Err(self.bad("rebuilds a tensor from what is not a storage"));
        };
        let named = match dtype.map(|id| &self.values[id]) {
            Some(Value::Global(Global::Dtype(encoding))) => Some(*encoding),
            Some(_) => return Err(self.bad("rebuilds a tensor of no known type")),
            None => None,
        };
        let Some(encoding) = named.or(storage.encoding) else {
            return Err(self.bad("rebuilds a tensor of untyped bytes"));
        };
        let view = TensorView {
            storage: (**storage).clone(),
            encoding,
            offset: self.count(offset)?,
            shape: self.counts(shape)?,
            strides: self.counts(strides)?,
        };
        if view.shape.len() != view.strides.len() {
            return Err(self.bad("rebuilds a tensor with as many strides as it has not dimensions"));
        }
        self.push(Value::Tensor(Box::new(view)))
    }

    /// State of a dict, such as the `_metadata` of a state dict: not needed.
    fn build(&mut self) -> Result<(), CheckpointError> {
        self.pop()?;
        match self.values[self.top()?] {
            Value::Dict(_) => Ok(()),
            _ => Err(self.bad("sets the state of what is not a dict")),
        }
    }
}
