//! What policies do, through the crate's public face.

#[cfg(test)]
mod analysis;
#[cfg(test)]
mod binding;
#[cfg(test)]
mod common;
#[cfg(test)]
mod compiling;
#[cfg(test)]
mod deciding;
#[cfg(test)]
mod documentation;
#[cfg(test)]
mod drafting;
#[cfg(test)]
mod linting;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod sets;
#[cfg(test)]
mod testing;
