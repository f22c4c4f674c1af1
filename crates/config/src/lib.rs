//! stacyvm.yaml and STACYVM_* variables: keys, defaults, where each value came from.
