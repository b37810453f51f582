//! The objects of one kind, as far as they are known: what the watch brought, and the answers to own writes.
//!
//! An answer can be newer than what the watch brings next, so the newer version wins, whichever way it came. Versions are etcd's revisions, which order the
//! writes of the whole cluster; with them the cache can also say how fresh its knowledge of one object is, and decisions that join two objects can ask
//! whether the one was looked at after the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// Names an object of a known kind. The namespace of cluster-scoped objects is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Key {
        Key { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub fn cluster(name: &str) -> Key {
        Key::new("", name)
    }

    pub fn of(object: &impl ResourceExt) -> Key {
        Key { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// A point in the order of all writes to the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// When the object was last written. One without a version is as old as can be.
    pub fn of(object: &impl ResourceExt) -> Revision {
        Revision(object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0))
    }
}

pub struct Cache<K> {
    objects: BTreeMap<Key, Arc<K>>,
    /// Until when an object is known to have been as it is here, where that is later than its last write; also for those known not to exist.
    confirmed: BTreeMap<Key, Revision>,
    /// What the list brought so far that will replace the objects.
    relisted: BTreeMap<Key, Arc<K>>,
    synced: bool,
}

impl<K> Default for Cache<K> {
    fn default() -> Cache<K> {
        Cache { objects: BTreeMap::new(), confirmed: BTreeMap::new(), relisted: BTreeMap::new(), synced: false }
    }
}

impl<K: ResourceExt> Cache<K> {
    /// Whether a first list came through whole.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.objects.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<K>)> {
        self.objects.iter()
    }

    pub fn keys(&self) -> Vec<Key> {
        self.objects.keys().cloned().collect()
    }

    /// The point up to which it is known that the object is as it is here, or is missing.
    pub fn fresh(&self, key: &Key) -> Revision {
        let written = self.objects.get(key).map(|object| Revision::of(object.as_ref())).unwrap_or_default();
        written.max(self.confirmed.get(key).copied().unwrap_or_default())
    }

    /// Takes in what a watch brought; says whether anything changed.
    pub fn take_in(&mut self, event: Event<K>) -> bool {
        match event {
            Event::Apply(object) => self.assume(object),
            Event::Delete(object) => {
                let (key, deleted) = (Key::of(&object), Revision::of(&object));
                if self.objects.get(&key).is_some_and(|known| Revision::of(known.as_ref()) > deleted) {
                    return false;
                }
                self.confirm(key, None, deleted)
            }
            Event::Init => {
                self.relisted.clear();
                false
            }
            Event::InitApply(object) => {
                self.relisted.insert(Key::of(&object), Arc::new(object));
                false
            }
            Event::InitDone => {
                self.replace_with_list();
                true
            }
        }
    }

    fn replace_with_list(&mut self) {
        let mut listed = std::mem::take(&mut self.relisted);
        for (key, object) in &mut listed {
            if let Some(known) = self.objects.get(key)
                && Revision::of(known.as_ref()) > Revision::of(object.as_ref())
            {
                *object = known.clone();
            }
        }
        self.objects = listed;
        self.synced = true;
    }

    /// Takes in the answer to a write, or anything else that is known to have been written; says whether it is news.
    pub fn assume(&mut self, object: K) -> bool {
        let key = Key::of(&object);
        let newer = self.fresh(&key) < Revision::of(&object) || (Revision::of(&object) == Revision(0));
        if newer {
            self.objects.insert(key, Arc::new(object));
        }
        newer
    }

    /// Takes in what an uncached read found, made when `as_of` was already known to be written; says whether it is news. What is known to be newer than that
    /// may have been made after the read.
    pub fn confirm(&mut self, key: Key, found: Option<K>, as_of: Revision) -> bool {
        let is_newer = self.objects.get(&key).is_some_and(|known| Revision::of(known.as_ref()) > as_of);
        let news = match found {
            Some(object) => self.assume(object),
            None => !is_newer && self.objects.remove(&key).is_some(),
        };
        let confirmed = self.confirmed.entry(key).or_default();
        *confirmed = as_of.max(*confirmed);
        news
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(name: &str, version: u64) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.to_owned());
        object.metadata.resource_version = Some(version.to_string());
        object
    }

    fn version(cache: &Cache<ConfigMap>, name: &str) -> Option<Revision> {
        cache.get(&Key::cluster(name)).map(|object| Revision::of(object.as_ref()))
    }

    #[test]
    fn a_late_watch_event_does_not_undo_the_answer_to_a_write() {
        let mut cache = Cache::default();
        cache.assume(object("a", 7));
        assert!(!cache.take_in(Event::Apply(object("a", 5))));
        assert_eq!(version(&cache, "a"), Some(Revision(7)));
        assert!(!cache.take_in(Event::Delete(object("a", 6))), "deleted before it was written again");
        assert!(cache.take_in(Event::Delete(object("a", 8))));
        assert_eq!(version(&cache, "a"), None);
        assert!(!cache.take_in(Event::Apply(object("a", 7))), "an event from before the deletion");
    }

    #[test]
    fn a_list_replaces_everything_but_what_is_newer() {
        let mut cache = Cache::default();
        cache.assume(object("gone", 3));
        cache.assume(object("kept", 9));
        for event in [Event::Init, Event::InitApply(object("kept", 4)), Event::InitApply(object("new", 5))] {
            assert!(!cache.take_in(event));
        }
        assert!(!cache.is_synced());
        assert!(cache.take_in(Event::InitDone));
        assert!(cache.is_synced());
        assert_eq!(
            (version(&cache, "gone"), version(&cache, "kept"), version(&cache, "new")),
            (None, Some(Revision(9)), Some(Revision(5)))
        );
    }

    #[test]
    fn an_uncached_read_makes_knowledge_fresh_without_a_new_version() {
        let mut cache = Cache::default();
        cache.assume(object("a", 3));
        assert_eq!(cache.fresh(&Key::cluster("a")), Revision(3));
        assert!(!cache.confirm(Key::cluster("a"), Some(object("a", 3)), Revision(8)));
        assert_eq!(cache.fresh(&Key::cluster("a")), Revision(8));
        cache.confirm(Key::cluster("missing"), None, Revision(8));
        assert_eq!(cache.fresh(&Key::cluster("missing")), Revision(8));
    }

    #[test]
    fn a_late_answer_that_there_is_no_such_object_does_not_remove_one_that_was_made_since() {
        let mut cache = Cache::default();
        cache.assume(object("a", 3));
        cache.assume(object("a", 9));
        assert!(!cache.confirm(Key::cluster("a"), None, Revision(8)));
        assert_eq!(version(&cache, "a"), Some(Revision(9)));
        assert!(cache.confirm(Key::cluster("a"), None, Revision(9)));
        assert_eq!(version(&cache, "a"), None);
    }
}
