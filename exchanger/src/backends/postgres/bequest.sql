-- Hands what `jobpass.role` owns in this database to `jobpass.heir`: its data, and nothing that runs.
--
-- What runs with its owner's rights (functions, views), or with those of whoever uses a table (triggers, rules,
-- defaults, checks), was written by a job, and would run with the heir's rights and its users' from now on.
-- So there is a list of what may pass on: schemas, sequences, tables, large objects, enumerations and composite
-- types. Whatever else the role owns is dropped; then all that hangs on its tables and types, but for expressions
-- of PostgreSQL's own pure functions. What cannot be stripped is dropped too, so that nothing a job makes is in the
-- removal's way: only what is busy fails, and is tried again.
DO $bequest$
DECLARE
    giver CONSTANT name := current_setting('jobpass.role');
    heir CONSTANT name := current_setting('jobpass.heir');
    -- What a role owns here, since which transaction, and whether it may pass on.
    owned CONSTANT text := $$
        SELECT s.classid, s.objid, s.xmin AS since,
            coalesce(c.relkind IN ('r', 'p', 'S'), t.typtype IN ('e', 'c'),
                s.classid IN ('pg_namespace'::regclass, 'pg_largeobject'::regclass)) AS plain,
            coalesce(c.oid, nullif(t.typrelid, 0)) AS relation, coalesce(nullif(c.reltype, 0), t.oid) AS type
        FROM pg_shdepend s
        LEFT JOIN pg_class c ON s.classid = 'pg_class'::regclass AND c.oid = s.objid
        LEFT JOIN pg_type t ON s.classid = 'pg_type'::regclass AND t.oid = s.objid
        WHERE s.refclassid = 'pg_authid'::regclass AND s.deptype = 'o'
        AND s.refobjid = (SELECT oid FROM pg_roles WHERE rolname = $1)
        AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        -- REASSIGN OWNED leaves these to DROP OWNED.
        AND s.classid NOT IN ('pg_default_acl'::regclass, 'pg_user_mapping'::regclass)
    $$;
    item record;
    kind text;
    called text;
    step text;
    steps text[];
    foreigners bigint;
BEGIN
    FOR item IN EXECUTE owned USING giver LOOP
        CONTINUE WHEN item.plain;
        SELECT replace(o.type, ' object', ''), o.identity INTO kind, called
        FROM pg_identify_object(item.classid, item.objid, 0) o;
        BEGIN
            IF called IS NOT NULL THEN
                EXECUTE format('DROP %s IF EXISTS %s CASCADE', kind, called);
            END IF;
        EXCEPTION
            WHEN lock_not_available OR internal_error OR deadlock_detected OR serialization_failure THEN RAISE;
            WHEN OTHERS THEN NULL; -- counted next
        END;
    END LOOP;
    EXECUTE 'SELECT count(*) FROM (' || owned || ') o WHERE NOT plain' INTO foreigners USING giver;
    IF foreigners > 0 THEN
        RETURN; -- nothing passes on
    END IF;

    EXECUTE format('REASSIGN OWNED BY %I TO %I', giver, heir);
    -- Exactly what passed on: the rows that this very transaction wrote. From here on nobody else can change it.
    FOR item IN EXECUTE owned USING heir LOOP
        CONTINUE WHEN item.since <> pg_current_xact_id()::xid;
        IF NOT item.plain THEN
            RAISE EXCEPTION 'somebody still makes things as %', giver USING ERRCODE = 'object_in_use';
        END IF;
        SELECT o.type, o.identity INTO kind, called FROM pg_identify_object(item.classid, item.objid, 0) o;
        CONTINUE WHEN called IS NULL;
        BEGIN
            SELECT coalesce(array_agg(it.text), '{}') INTO steps FROM (
                -- What has no other use than to run.
                SELECT format('DROP %s IF EXISTS %s CASCADE', o.type, o.identity) AS text
                FROM (
                    SELECT 'pg_trigger'::regclass, oid FROM pg_trigger
                    WHERE tgrelid = item.relation AND NOT tgisinternal AND tgparentid = 0
                    UNION ALL SELECT 'pg_rewrite'::regclass, oid FROM pg_rewrite WHERE ev_class = item.relation
                    UNION ALL SELECT 'pg_policy'::regclass, oid FROM pg_policy WHERE polrelid = item.relation
                    UNION ALL SELECT 'pg_cast'::regclass, c.oid FROM pg_cast c
                    JOIN pg_type t ON t.oid IN (c.castsource, c.casttarget) WHERE item.type IN (t.oid, t.typelem)
                ) AS it (class, id), pg_identify_object(it.class, it.id, 0) o
                UNION ALL
                -- Rights to put such things there.
                SELECT format('REVOKE %s ON %s FROM %s CASCADE', a.privilege_type, it.place,
                    CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END)
                FROM (
                    SELECT 'TRIGGER', 'TABLE ' || called, relacl FROM pg_class
                    WHERE oid = item.relation AND relkind <> 'c'
                    UNION ALL SELECT 'CREATE', 'SCHEMA ' || called, nspacl FROM pg_namespace
                    WHERE item.classid = 'pg_namespace'::regclass AND oid = item.objid
                ) AS it (privilege, place, acl), aclexplode(it.acl) a
                WHERE a.privilege_type = it.privilege AND a.grantee <> (SELECT oid FROM pg_roles WHERE rolname = heir)
                UNION ALL
                -- What has expressions, types or operators of somebody's own.
                SELECT it.cure
                FROM (
                    SELECT 'pg_attrdef'::regclass, d.oid, d.adbin::text,
                        format('ALTER TABLE %s ALTER COLUMN %I DROP %s', called, a.attname,
                            CASE a.attgenerated WHEN '' THEN 'DEFAULT' ELSE 'EXPRESSION' END)
                    FROM pg_attrdef d JOIN pg_attribute a ON (a.attrelid, a.attnum) = (d.adrelid, d.adnum)
                    WHERE d.adrelid = item.relation
                    UNION ALL SELECT 'pg_constraint'::regclass, oid, conbin::text,
                        format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I CASCADE', called, conname)
                    FROM pg_constraint WHERE conrelid = item.relation
                    UNION ALL SELECT 'pg_class'::regclass, indexrelid, concat(indexprs, indpred),
                        format('DROP INDEX IF EXISTS %s CASCADE', indexrelid::regclass)
                    FROM pg_index WHERE indrelid = item.relation
                    UNION ALL SELECT 'pg_class'::regclass, c.oid, p.partexprs::text,
                        format('DROP %s IF EXISTS %s CASCADE', kind, called)
                    FROM pg_class c LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid WHERE c.oid = item.relation
                ) AS it (class, id, tree, cure)
                WHERE EXISTS (
                    -- PostgreSQL keeps no record of what depends on its own things.
                    SELECT FROM pg_depend d
                    LEFT JOIN pg_type t ON d.refclassid = 'pg_type'::regclass AND t.oid = d.refobjid
                    WHERE (d.classid, d.objid) = (it.class, it.id)
                    AND d.refclassid NOT IN ('pg_class'::regclass, 'pg_namespace'::regclass, 'pg_constraint'::regclass,
                        'pg_collation'::regclass, 'pg_am'::regclass, 'pg_opclass'::regclass)
                    AND coalesce(pg_get_userbyid(t.typowner) ~ '^jobpass_[0-9a-f]{32}$', true)
                ) OR EXISTS (
                    SELECT FROM regexp_matches(it.tree, ':funcid (\d+)', 'g') AS call JOIN pg_proc f ON f.oid = call[1]::oid
                    WHERE f.provolatile <> 'i' AND f.oid NOT IN (SELECT castfunc FROM pg_cast WHERE oid < 16384)
                    AND f.proname NOT IN ('nextval', 'now', 'transaction_timestamp', 'statement_timestamp',
                        'clock_timestamp', 'random', 'gen_random_uuid')
                )
            ) AS it;
            FOREACH step IN ARRAY steps LOOP
                EXECUTE step;
            END LOOP;
        EXCEPTION
            WHEN lock_not_available OR internal_error OR deadlock_detected OR serialization_failure THEN RAISE;
            WHEN OTHERS THEN EXECUTE format('DROP %s %s CASCADE', kind, called);
        END;
    END LOOP;
END
$bequest$
