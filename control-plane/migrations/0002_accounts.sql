-- Users, their logins, and the keys that tokens are signed with.

create table app_user (
    id            uuid primary key,
    tenant_id     uuid not null references tenant,
    username      text not null check (username ~ '^[[:alnum:]._-]{1,64}$'),
    email         text not null check (length(email) between 3 and 254),
    name          text not null default '' check (length(name) <= 200),
    -- PHC string; null: cannot log in with a password.
    password_hash text,
    role          text not null check (role in ('user', 'admin')),
    enabled       boolean not null default true,
    rate_class    text not null default 'user' check (rate_class in ('user', 'enterprise')),
    networks      text[] not null default '{}',
    -- Counts what ended all tokens: a ban, another role, another password.
    epoch         bigint not null default 0,
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    unique (tenant_id, id)
);
create unique index app_user_username on app_user (tenant_id, lower(username));
create unique index app_user_email on app_user (tenant_id, lower(email));
-- Ids grow with time, so lists go by id.
create index app_user_newest on app_user (tenant_id, id desc);

-- One row a login; refresh tokens are its id, a counter and a MAC under its own key, so no row a token.
create table login (
    id             uuid primary key,
    tenant_id      uuid not null,
    user_id        uuid not null,
    -- Under the installation's secret.
    sealed_key     bytea not null,
    counter        bigint not null default 0,
    rotated_at     timestamptz not null default now(),
    -- The last but one token was shown again since the last rotation,
    graced         boolean not null default false,
    -- and that so many rotations in a row, each at once after the other.
    contended      integer not null default 0,
    created_at     timestamptz not null default now(),
    -- The last moment at which a refresh token of it works.
    not_after      timestamptz not null,
    user_agent     text not null default '',
    address        inet,
    ended_at       timestamptz,
    end_reason     text,
    foreign key (tenant_id, user_id) references app_user (tenant_id, id) on delete cascade
);
create index login_of_user on login (user_id, id desc);
create index login_end on login (not_after);
create index login_ended on login (ended_at) where ended_at is not null;

-- Attempts that failed, or are not over: by who was meant and from where, so that nobody is kept
-- out from elsewhere. The empty account is all of them.
create table login_attempt (
    account        bytea not null,
    network        inet not null,
    failures       integer not null,
    last_at        timestamptz not null,
    blocked_until  timestamptz not null,
    primary key (account, network)
);
create index login_attempt_age on login_attempt (last_at);

create table signing_key (
    id             uuid primary key,
    kid            text not null unique,
    public_x       text not null,
    -- Under the installation's secret.
    sealed_seed    bytea not null,
    state          text not null check (state in ('next', 'active', 'retired')),
    created_at     timestamptz not null default now(),
    not_after      timestamptz
);
create unique index signing_key_active on signing_key (state) where state = 'active';
create unique index signing_key_next on signing_key (state) where state = 'next';
