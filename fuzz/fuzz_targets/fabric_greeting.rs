#![no_main]

trackbed_fuzz::fuzz!("fabric-greeting");
