//! A certificate, as bytes: read without a panic, and where x509-parser reads it, the same is found.
//!
//! Input: one byte and DER. The byte chooses where one of the DER's bytes is changed, so that real certificates as
//! seeds lead to nearly real ones.

use tidegate::tls::der::{Certificate, Hash, Signature, oid};
use x509_parser::prelude::{FromDer, X509Certificate};

pub fn run(data: &[u8]) {
    let Some((&place, der)) = data.split_first() else { return };
    let mut bytes = der.to_vec();
    if place != 0 {
        let at = usize::from(place) * bytes.len() / 256;
        if let Some(byte) = bytes.get_mut(at) {
            *byte = byte.rotate_left(1) ^ place;
        }
    }
    let read = Certificate::parse(&bytes);
    if let Some(read) = &read {
        used(read, &bytes);
    }
    if let (Some(read), Ok((rest, judge))) = (read, X509Certificate::from_der(&bytes))
        && rest.is_empty()
    {
        same(&read, &judge);
    }
}

/// Everything that can be asked of it has an answer, and borrows from the input.
fn used(read: &Certificate<'_>, bytes: &[u8]) {
    assert!((1..=3).contains(&read.version) && (read.version == 3 || read.extensions().next().is_none()));
    for part in [read.signed, read.signature, read.issuer, read.subject, read.key.bits] {
        assert!(
            bytes.as_ptr_range().start <= part.as_ptr()
                && part.as_ptr_range().end <= bytes.as_ptr_range().end
        );
    }
    let _ = (read.common_name(), read.may_be_a_servers(), read.has_a_servers_key(), read.key.curve());
    if let Some((modulus, exponent)) = read.key.rsa() {
        assert!(modulus.first() != Some(&0) && exponent.first() != Some(&0));
    }
    assert!(read.authority().is_none() || read.extension(oid::BASIC_CONSTRAINTS).is_some());
    if let Some(Signature::Pss { salt_bytes, .. }) = read.algorithm.signature() {
        assert!(salt_bytes <= 0x7fff);
    }
}

fn same(read: &Certificate<'_>, judge: &X509Certificate<'_>) {
    assert_eq!(u32::from(read.version), judge.version().0 + 1);
    assert_eq!(read.signed, judge.tbs_certificate.as_ref());
    assert_eq!(read.signature, judge.signature_value.data.as_ref());
    assert_eq!(read.algorithm.id, judge.signature_algorithm.algorithm.as_bytes());
    assert!(
        judge.issuer().as_raw().ends_with(read.issuer) && judge.subject().as_raw().ends_with(read.subject)
    );
    assert_eq!(read.key.bits, judge.public_key().subject_public_key.data.as_ref());
    assert_eq!(read.key.algorithm.id, judge.public_key().algorithm.algorithm.as_bytes());
    let count = read.extensions().flatten().count();
    assert_eq!(count, judge.extensions().len());
    for (ours, theirs) in read.extensions().flatten().zip(judge.extensions()) {
        assert_eq!((ours.id, ours.value), (theirs.oid.as_bytes(), theirs.value));
        assert_eq!(ours.is_critical, theirs.critical);
    }
    // It does not judge dates that there are not, such as the 31st of February.
    let theirs = (judge.validity().not_before.timestamp(), judge.validity().not_after.timestamp());
    let ours = (read.validity.0.cast_signed(), read.validity.1.cast_signed());
    assert_eq!(ours, (theirs.0.max(0), theirs.1.max(0)));
    if let Ok(Some(constraints)) = judge.basic_constraints()
        && read.authority().is_some()
    {
        assert!(constraints.value.ca);
    }
    let by_rsa = read.algorithm.id.starts_with(oid::RSA);
    let hash = match read.algorithm.signature() {
        Some(Signature::Pkcs1(hash) | Signature::Pss { hash, .. }) => {
            assert!(by_rsa);
            hash
        }
        Some(Signature::Ecdsa(hash)) => hash,
        Some(Signature::Ed25519) | None => return,
    };
    assert!(by_rsa || hash != Hash::Md5);
}
