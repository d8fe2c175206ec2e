//! Fine-tuning data as people have them: shapes, roles, marks, held-out records, templates.
