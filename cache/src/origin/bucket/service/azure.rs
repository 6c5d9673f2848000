//! Azure Blob Storage.

use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};

use super::super::super::{BucketLocation, CredentialsRef, OriginError, SecretValues, secrets};

const ACCOUNT_KEY: &str = "AZURE_STORAGE_ACCOUNT_KEY";
const SAS_TOKEN: &str = "AZURE_STORAGE_SAS_TOKEN";
const CLIENT_ID: &str = "AZURE_CLIENT_ID";
const CLIENT_SECRET: &str = "AZURE_CLIENT_SECRET";
const TENANT_ID: &str = "AZURE_TENANT_ID";

/// What is looked at in the environment: who we are, and how the node says so. Others would change what
/// the origin's URL says.
const VARIABLES: [&str; 7] = [
    ACCOUNT_KEY,
    SAS_TOKEN,
    CLIENT_ID,
    CLIENT_SECRET,
    TENANT_ID,
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_AUTHORITY_HOST",
];

/// The builder for a container of `account`, with its credentials. Without any in the environment, the
/// library asks the instance's metadata service.
pub(super) fn builder(
    account: &str,
    location: &BucketLocation,
    url: &str,
    secret: Option<&SecretValues>,
) -> Result<MicrosoftAzureBuilder, OriginError> {
    let mut builder = MicrosoftAzureBuilder::new()
        .with_account(account)
        .with_container_name(&location.bucket);
    if let Some(endpoint) = &location.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    match (&location.credentials, secret) {
        (CredentialsRef::Anonymous, _) => Ok(builder.with_skip_signature(true)),
        (CredentialsRef::Environment, _) => Ok(of_environment(builder)),
        (CredentialsRef::File(path), _) => {
            let text = secrets::read_file(path, url)?;
            of_values(builder, &secrets::parse_lines(path, &text, url)?, url)
        }
        (CredentialsRef::Secret { .. }, secret) => {
            of_values(builder, &secret.cloned().unwrap_or_default(), url)
        }
    }
}

fn of_environment(builder: MicrosoftAzureBuilder) -> MicrosoftAzureBuilder {
    VARIABLES.iter().fold(builder, |builder, name| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        match (name.to_ascii_lowercase().parse::<AzureConfigKey>(), value) {
            (Ok(key), Some(value)) => builder.with_config(key, value),
            _ => builder,
        }
    })
}

/// With what a Secret or a file says, and the kind of it said too: the library would else look for others.
fn of_values(
    builder: MicrosoftAzureBuilder,
    values: &SecretValues,
    url: &str,
) -> Result<MicrosoftAzureBuilder, OriginError> {
    let value = |name: &str| values.get(name).filter(|value| !value.is_empty());
    if let Some(key) = value(ACCOUNT_KEY) {
        return Ok(builder
            .with_access_key(key)
            .with_credential_type("access_key"));
    }
    if let Some(token) = value(SAS_TOKEN) {
        return Ok(builder
            .with_config(AzureConfigKey::SasKey, token)
            .with_credential_type("sas_token"));
    }
    match (value(CLIENT_ID), value(CLIENT_SECRET), value(TENANT_ID)) {
        (Some(client), Some(secret), Some(tenant)) => Ok(builder
            .with_client_secret_authorization(client, secret, tenant)
            .with_credential_type("client_secret")),
        _ => Err(secrets::incomplete(
            url,
            "account's key, SAS token or client's secret",
            "AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN, or AZURE_CLIENT_ID with \
             AZURE_CLIENT_SECRET and AZURE_TENANT_ID",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(values: &[(&str, &str)]) -> Result<Option<String>, String> {
        let owned = values
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let values = SecretValues::new(owned.collect());
        let builder = of_values(MicrosoftAzureBuilder::new(), &values, "az://account1/sets/");
        builder
            .map(|builder| builder.get_config_value(&AzureConfigKey::CredentialType))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_that_says_too_little_is_refused_and_never_made_up_for_by_the_node() {
        for (values, said) in [
            (&[(ACCOUNT_KEY, "aHVudGVy")][..], "access_key"),
            (&[(SAS_TOKEN, "sig=hunter2")], "sas_token"),
            (
                &[
                    (CLIENT_ID, "a"),
                    (CLIENT_SECRET, "hunter2"),
                    (TENANT_ID, "b"),
                ],
                "client_secret",
            ),
        ] {
            assert_eq!(kind(values), Ok(Some(said.to_owned())));
        }
        for little in [
            &[][..],
            &[(CLIENT_SECRET, "hunter2")],
            &[(CLIENT_ID, "a"), (TENANT_ID, "b")],
            &[(ACCOUNT_KEY, "")],
            &[("AZURE_FEDERATED_TOKEN_FILE", "/etc/shadow")],
        ] {
            let refused = kind(little).expect_err("too little");
            assert!(refused.contains(ACCOUNT_KEY), "{refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }
}
