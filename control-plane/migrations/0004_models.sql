-- Models, who serves them, and agents.

create table upstream (
    id            uuid primary key,
    tenant_id     uuid not null references tenant,
    provider      text not null check (provider in ('openai', 'anthropic', 'dify', 'fastgpt', 'custom')),
    base_url      text not null check (length(base_url) between 8 and 2048),
    -- Sealed by pagoda_wire::credential, bound to this row and to the origin beside it.
    credential    text,
    credential_origin text,
    credential_key_id text,
    timeout_ms    bigint not null default 60000 check (timeout_ms between 1 and 3600000),
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    check ((credential is null) = (credential_origin is null)),
    check ((credential is null) = (credential_key_id is null)),
    unique (tenant_id, id)
);

create table model (
    id                uuid primary key,
    tenant_id         uuid not null references tenant,
    name              text not null check (name ~ '^[^/[:cntrl:]]{1,200}$'),
    provider          text not null check (provider in ('local', 'openai', 'anthropic', 'dify', 'fastgpt', 'custom')),
    upstream_id       uuid,
    model             text not null check (length(model) between 1 and 200),
    enabled           boolean not null default true,
    input_nano        bigint check (input_nano >= 0),
    cached_nano       bigint check (cached_nano >= 0),
    output_nano       bigint check (output_nano >= 0),
    created_at        timestamptz not null default now(),
    updated_at        timestamptz not null default now(),
    check ((provider = 'local') = (upstream_id is null)),
    constraint model_name unique (tenant_id, name),
    foreign key (tenant_id, upstream_id) references upstream (tenant_id, id)
);

create table agent (
    id            uuid primary key,
    tenant_id     uuid not null references tenant,
    name          text not null check (length(name) between 1 and 200),
    description   text not null default '' check (length(description) <= 10000),
    provider      text not null check (provider in ('local', 'openai', 'anthropic', 'dify', 'fastgpt', 'custom')),
    model         text not null check (length(model) between 1 and 200),
    system_prompt text not null default '' check (length(system_prompt) <= 100000),
    parameters    jsonb not null default '{}' check (jsonb_typeof(parameters) = 'object'),
    category      text not null default 'general' check (length(category) between 1 and 100),
    capabilities  text[] not null default '{}',
    status        text not null default 'active' check (status in ('active', 'inactive')),
    -- The file's entry as it was last read; a reload leaves a row alone whose entry is the same.
    -- A hash of null: the entry is gone from the file.
    file_key      text,
    file_hash     bytea,
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    unique (tenant_id, file_key),
    -- Looked at once at the end of a reload: two entries may swap their names.
    constraint agent_name unique (tenant_id, name) deferrable initially immediate
);
