//! Model directories as people have them: recognised by content, adapters by an allow-list.
