//! Reads and writes the wire format of Protocol Buffers, without building messages.
//!
//! <https://protobuf.dev/programming-guides/encoding/>

use std::str;

use smallvec::SmallVec;

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'m> {
    /// The field's number.
    pub number: u32,
    value: Value<'m>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'m> {
    /// A number in any encoding, or a group, which is obsolete. Their values are never needed.
    Number,
    Octets(&'m [u8]),
}

/// Bytes that are not a message of the expected type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of the expected type")]
pub struct Malformed;

/// The fields of a message, in order. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Fields<'m> {
    rest: &'m [u8],
}

/// Maximum depth of nested groups.
const MAX_GROUPS: u32 = 64;

/// The fields of `message`.
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

impl<'m> Field<'m> {
    /// The value of a field with a message.
    ///
    /// # Errors
    /// If the field is a number.
    pub fn message(&self) -> Result<&'m [u8], Malformed> {
        match self.value {
            Value::Octets(octets) => Ok(octets),
            Value::Number => Err(Malformed),
        }
    }

    /// The value of a field with a text.
    ///
    /// # Errors
    /// If the field is a number, or not UTF-8.
    pub fn text(&self) -> Result<&'m str, Malformed> {
        str::from_utf8(self.message()?).map_err(|_| Malformed)
    }

    /// The bytes of a text. Cheaper than [`Field::text`], because almost all texts are ASCII.
    ///
    /// # Errors
    /// If the field is a number, or not UTF-8.
    pub fn text_octets(&self) -> Result<&'m [u8], Malformed> {
        let octets = self.message()?;
        if octets.is_ascii() { Ok(octets) } else { self.text().map(str::as_bytes) }
    }
}

impl<'m> Fields<'m> {
    #[inline]
    fn read(&mut self) -> Result<Field<'m>, Malformed> {
        // The fast path: almost all fields are short texts and messages with small field numbers.
        if let [key @ 8..0x80, length @ ..0x80, rest @ ..] = self.rest
            && key & 7 == 2
            && let Some((octets, rest)) = rest.split_at_checked(usize::from(*length))
        {
            self.rest = rest;
            return Ok(Field { number: u32::from(key >> 3), value: Value::Octets(octets) });
        }
        self.read_any()
    }

    #[cold]
    fn read_any(&mut self) -> Result<Field<'m>, Malformed> {
        let (number, wire_type) = self.key()?;
        Ok(Field { number, value: self.value(number, wire_type, MAX_GROUPS)? })
    }

    fn key(&mut self) -> Result<(u32, u32), Malformed> {
        let key = u32::try_from(self.number()?).map_err(|_| Malformed)?;
        if key >> 3 == 0 { Err(Malformed) } else { Ok((key >> 3, key & 7)) }
    }

    /// The value of a field. `groups` is the remaining depth of nested groups.
    fn value(&mut self, number: u32, wire_type: u32, groups: u32) -> Result<Value<'m>, Malformed> {
        match wire_type {
            0 => self.number()?,
            1 => self.take(8).map(|_| 0)?,
            2 => {
                let length = usize::try_from(self.number()?).map_err(|_| Malformed)?;
                return self.take(length).map(Value::Octets);
            }
            3 => {
                let groups = groups.checked_sub(1).ok_or(Malformed)?;
                loop {
                    let (inner, wire_type) = self.key()?;
                    if wire_type == 4 {
                        break if inner == number { 0 } else { return Err(Malformed) };
                    }
                    self.value(inner, wire_type, groups)?;
                }
            }
            5 => self.take(4).map(|_| 0)?,
            _ => return Err(Malformed),
        };
        Ok(Value::Number)
    }

    /// A varint: seven bits per byte, the lowest first. The highest bit says that another byte follows.
    fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (octet, rest) = self.rest.split_first().ok_or(Malformed)?;
            self.rest = rest;
            let bits = u64::from(octet & 0x7f);
            if shift == 63 && *octet > 1 {
                return Err(Malformed);
            }
            number |= bits << shift;
            if *octet < 0x80 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    fn take(&mut self, length: usize) -> Result<&'m [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }
}

impl<'m> Iterator for Fields<'m> {
    type Item = Result<Field<'m>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        Some(self.read().inspect_err(|_| self.rest = &[]))
    }
}

/// Appends a field with a text, bytes, or an encoded message.
pub fn put(message: &mut Vec<u8>, field: u32, octets: &[u8]) {
    put_number_bits(message, u64::from(field << 3 | 2));
    put_number_bits(message, octets.len() as u64);
    message.extend_from_slice(octets);
}

/// Appends a field with a number.
pub fn put_number(message: &mut Vec<u8>, field: u32, number: u64) {
    put_number_bits(message, u64::from(field << 3));
    put_number_bits(message, number);
}

/// Appends a field with a message, whose fields `write` appends.
pub fn put_message(message: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    put_number_bits(message, u64::from(field << 3 | 2));
    let place = message.len();
    message.push(0);
    write(message);
    let length = message.len() - place - 1;
    match (u8::try_from(length), message.get_mut(place)) {
        (Ok(length @ ..0x80), Some(octet)) => *octet = length,
        _ => {
            let mut octets = SmallVec::<[u8; 10]>::new();
            put_number_bits(&mut octets, length as u64);
            message.splice(place..=place, octets);
        }
    }
}

fn put_number_bits(message: &mut impl Extend<u8>, mut number: u64) {
    while number > 0x7f {
        message.extend([number as u8 | 0x80]);
        number >>= 7;
    }
    message.extend([number as u8]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_ten_octets_at_most_and_no_more_than_64_bits() {
        let read = |octets: &[u8]| Fields { rest: octets }.number();
        assert_eq!(read(&[0x96, 0x01]), Ok(150));
        assert_eq!(read(&[0x80, 0x80, 0x00]), Ok(0), "longer than need be");
        let largest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(read(&largest), Ok(u64::MAX));
        for end in [0x02, 0x7f, 0x81] {
            assert_eq!(read(&[&largest[..9], &[end, 0]].concat()), Err(Malformed));
        }
        assert_eq!(read(&[0x80]), Err(Malformed));
        assert_eq!(read(&[]), Err(Malformed));
    }

    #[test]
    fn what_is_written_is_read_again() {
        for length in [0, 1, 127, 128, 300, 20_000] {
            let text = "x".repeat(length);
            let mut message = Vec::new();
            put_number(&mut message, 1, 1 << 40);
            put_message(&mut message, 2, |message| {
                put_message(message, 20, |message| put(message, 3, text.as_bytes()))
            });
            let all: Vec<_> = fields(&message).collect::<Result<_, _>>().unwrap();
            let [number, outer] = all[..] else { panic!("{all:?}") };
            assert_eq!((number.number, number.text(), number.message()), (1, Err(Malformed), Err(Malformed)));
            let inner = fields(outer.message().unwrap()).next().unwrap().unwrap();
            assert_eq!(inner.number, 20);
            let innermost = fields(inner.message().unwrap()).next().unwrap().unwrap();
            assert_eq!((innermost.number, innermost.text()), (3, Ok(&*text)));
        }
    }

    #[test]
    fn an_error_is_the_last_that_comes() {
        for message in [
            &[0x0a, 0x05, b'x'][..], // shorter than it says
            &[0x09, 0, 0, 0],        // a double of four octets
            &[0x0d, 0],              // a float of one
            &[0x00, 0x00],           // field 0
            &[0x0b, 0x14],
            &[0x0b, 0x08],
            &[0x0c],
            &[0x0e],                            // no type 6
            &[0xff, 0xff, 0xff, 0xff, 0x7f, 0], // a key of more than 32 bits
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        ] {
            assert_eq!(fields(message).collect::<Vec<_>>(), [Err(Malformed)], "{message:?}");
        }
        let group = [0x0b, 0x10, 0x01, 0x1b, 0x1c, 0x0c, 0x0a, 0x00];
        let fields_of_group: Vec<_> = fields(&group).map(|field| field.unwrap().message()).collect();
        assert_eq!(fields_of_group, [Err(Malformed), Ok(&[][..])], "a group is passed over");
        let deep = |depth: usize| [[0x0b].repeat(depth), [0x0c].repeat(depth)].concat();
        assert!(fields(&deep(64)).all(|field| field.is_ok()));
        assert!(fields(&deep(65)).any(|field| field.is_err()));
        let text = fields(&[0x0a, 0x02, 0xc3, 0x28]).next().unwrap().unwrap();
        assert_eq!(text.text(), Err(Malformed), "not UTF-8");
    }
}
