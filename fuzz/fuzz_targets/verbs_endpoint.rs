#![no_main]

trackbed_fuzz::fuzz!("verbs-endpoint");
