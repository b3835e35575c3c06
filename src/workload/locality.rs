#[derive(Debug, thiserror::Error)]
pub enum LocalityError {
    #[error("stub")]
    Stub,
}
/// region[/zone[/subzone]]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
}
impl std::str::FromStr for Locality {
    type Err = LocalityError;
    fn from_str(_s: &str) -> Result<Self, LocalityError> {
        todo!()
    }
}
impl std::fmt::Display for Locality {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        todo!()
    }
}
