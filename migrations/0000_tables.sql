CREATE TABLE IF NOT EXISTS `admin_keys` (
	`id` text PRIMARY KEY NOT NULL,
	`name` text NOT NULL,
	`hash` text NOT NULL,
	`created_at` integer NOT NULL,
	`expires_at` integer NOT NULL,
	`last_used_at` integer,
	`revoked_at` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX IF NOT EXISTS `admin_keys_by_hash` ON `admin_keys` (`hash`);--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `agent_wallets` (
	`agent_id` text PRIMARY KEY NOT NULL,
	`address` text NOT NULL,
	`private_key` text NOT NULL,
	`key_id` text,
	`recipient_public_key` text,
	`sealed_private_key` text,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `agent_wallets_by_key` ON `agent_wallets` (`key_id`);--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `attempts` (
	`incarnation` text NOT NULL,
	`number` integer NOT NULL,
	`provider` text NOT NULL,
	`region` text NOT NULL,
	`plan` text NOT NULL,
	`label` text NOT NULL,
	`mark` text NOT NULL,
	`public_key` text NOT NULL,
	`brought_by` text,
	`private_key` text,
	`key_id` text NOT NULL,
	`host_public_key` text NOT NULL,
	`create_sent_at` integer NOT NULL,
	`instance_id` text,
	`boot_deadline_at` integer,
	`started_at` integer NOT NULL,
	`ended_at` integer,
	`outcome` text,
	`detail` text,
	`gone_at` integer,
	PRIMARY KEY(`incarnation`, `number`)
);
--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `attempts_by_label` ON `attempts` (`label`);--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `attempts_by_key` ON `attempts` (`key_id`) WHERE private_key IS NOT NULL;--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `bans` (
	`client` text PRIMARY KEY NOT NULL,
	`until` integer NOT NULL,
	`since` integer NOT NULL,
	`reason` text NOT NULL,
	`by` text NOT NULL
);
--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `bans_by_end` ON `bans` (`until`);--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `catalogs` (
	`id` integer PRIMARY KEY NOT NULL,
	`tiers` text,
	`tiers_at` integer,
	`stock` text
);
--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `counters` (
	`name` text PRIMARY KEY NOT NULL,
	`value` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `cursors` (
	`id` integer PRIMARY KEY NOT NULL,
	`block_number` integer NOT NULL,
	`block_hash` text NOT NULL,
	`block_timestamp` integer NOT NULL,
	`checkpoints` text NOT NULL,
	`range` integer NOT NULL,
	`spans` text DEFAULT '{}' NOT NULL,
	`lease` text DEFAULT '' NOT NULL,
	`lease_until` integer DEFAULT 0 NOT NULL,
	`scanned_at` integer NOT NULL,
	`swept_at` integer DEFAULT 0 NOT NULL,
	`compared_to` integer DEFAULT -1 NOT NULL,
	`catalog_asked_at` integer DEFAULT 0 NOT NULL,
	`pruned_at` integer DEFAULT 0 NOT NULL
);
--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `data_keys` (
	`id` text PRIMARY KEY NOT NULL,
	`current` integer NOT NULL,
	`published_at` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `disputes` (
	`token_id` integer PRIMARY KEY NOT NULL,
	`since` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `failed_provisionings` (
	`id` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`incarnation` text NOT NULL,
	`token_id` integer NOT NULL,
	`tier` integer NOT NULL,
	`cause` text NOT NULL,
	`detail` text NOT NULL,
	`attempts` integer NOT NULL,
	`created_at` integer NOT NULL,
	`resolved_at` integer
);
--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `failed_provisionings_open` ON `failed_provisionings` (`created_at`) WHERE resolved_at IS NULL;--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `gaps` (
	`token_id` integer PRIMARY KEY NOT NULL,
	`from_block` integer NOT NULL,
	`to_block` integer NOT NULL,
	`read_to` integer DEFAULT -1 NOT NULL,
	`tries` integer DEFAULT 0 NOT NULL,
	`next_try_at` integer NOT NULL
);
--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `gaps_due` ON `gaps` (`next_try_at`);--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `key_holders` (
	`incarnation` text NOT NULL,
	`attempt` integer NOT NULL,
	`address` text NOT NULL,
	`clear_at` integer,
	`sealed_at` integer,
	`sealed` text,
	PRIMARY KEY(`incarnation`, `attempt`, `address`)
);
--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `nonces` (
	`address` text NOT NULL,
	`nonce` text NOT NULL,
	`expires_at` integer NOT NULL,
	PRIMARY KEY(`address`, `nonce`)
);
--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `nonces_expired` ON `nonces` (`expires_at`);--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `owner_counts` (
	`owner` text PRIMARY KEY NOT NULL,
	`count` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `pauses` (
	`what` text PRIMARY KEY NOT NULL,
	`since` integer NOT NULL,
	`reason` text NOT NULL,
	`by` text NOT NULL
);
--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `payment_links` (
	`tx_hash` text PRIMARY KEY NOT NULL,
	`payment` text NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payment_links_by_payment` ON `payment_links` (`payment`);--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `payments` (
	`id` text PRIMARY KEY NOT NULL,
	`kind` text NOT NULL,
	`chain_id` integer NOT NULL,
	`payer` text NOT NULL,
	`nonce` text NOT NULL,
	`identifier` text,
	`request` text NOT NULL,
	`amount` text NOT NULL,
	`pay_to` text NOT NULL,
	`valid_after` integer NOT NULL,
	`valid_before` integer NOT NULL,
	`signature` text NOT NULL,
	`state` text NOT NULL,
	`step` text NOT NULL,
	`reason` text,
	`generation` integer DEFAULT 1 NOT NULL,
	`from_block` integer NOT NULL,
	`token_id` integer,
	`tier` integer,
	`duration_days` integer,
	`ssh_public_key` text,
	`region` text,
	`capture_first` integer DEFAULT false NOT NULL,
	`quoted_block` integer,
	`incarnation` text,
	`cost` text,
	`reverts` integer DEFAULT 0 NOT NULL,
	`failing_since` integer,
	`bought_at` integer,
	`held` integer DEFAULT false NOT NULL,
	`purchase_tx` text,
	`settle_tx` text,
	`transfer_tx` text,
	`refund_tx` text,
	`served_at` integer,
	`wake_at` integer,
	`created_at` integer NOT NULL,
	`settled_at` integer,
	`ended_at` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX IF NOT EXISTS `payments_claim` ON `payments` (`chain_id`,`payer`,`nonce`);--> statement-breakpoint
CREATE UNIQUE INDEX IF NOT EXISTS `payments_identifier` ON `payments` (`payer`,`identifier`) WHERE identifier IS NOT NULL;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_to_wake` ON `payments` (`wake_at`) WHERE wake_at IS NOT NULL AND NOT (state IN ('claimed', 'releasing') AND bought_at IS NULL);--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_nobodys_to_wake` ON `payments` (`wake_at`) WHERE wake_at IS NOT NULL AND (state IN ('claimed', 'releasing') AND bought_at IS NULL);--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_to_forget` ON `payments` (`ended_at`) WHERE state = 'released' AND bought_at IS NULL AND cost IS NULL AND settle_tx IS NULL AND incarnation IS NULL AND held = 0 AND reason IS NOT 'capture_refused';--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_open` ON `payments` (`payer`) WHERE state IN ('claimed', 'authorized', 'settling');--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_paid` ON `payments` (`payer`) WHERE kind = 'compute' AND state = 'settled';--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_by_order` ON `payments` (`payer`,`created_at`) WHERE kind = 'compute';--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_unpaid` ON `payments` (`bought_at`,`amount`) WHERE kind = 'compute' AND capture_first = 0 AND (state IN ('claimed', 'authorized', 'settling') OR (state = 'releasing' AND bought_at IS NOT NULL));--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_unbought` ON `payments` (`amount`) WHERE kind = 'compute' AND bought_at IS NULL AND state IN ('claimed', 'authorized', 'settling', 'settled');--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_bought` ON `payments` (`bought_at`,`cost`) WHERE bought_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_refused` ON `payments` (`payer`) WHERE reason = 'capture_refused';--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_by_purchase` ON `payments` (`incarnation`) WHERE incarnation IS NOT NULL;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_by_settlement` ON `payments` (`settle_tx`) WHERE settle_tx IS NOT NULL;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_by_transfer` ON `payments` (`transfer_tx`) WHERE transfer_tx IS NOT NULL;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_by_refund` ON `payments` (`refund_tx`) WHERE refund_tx IS NOT NULL;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_by_nonce` ON `payments` (`nonce`);--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_held` ON `payments` (`tier`) WHERE held = 1;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `payments_by_state` ON `payments` (`state`,`created_at`);--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `purchases` (
	`incarnation` text PRIMARY KEY NOT NULL,
	`token_id` integer NOT NULL,
	`tx_hash` text NOT NULL,
	`ordinal` integer NOT NULL,
	`block_number` integer NOT NULL,
	`block_hash` text NOT NULL,
	`log_index` integer NOT NULL,
	`buyer` text NOT NULL,
	`tier` integer NOT NULL,
	`duration_days` integer NOT NULL,
	`purchase_date` integer NOT NULL,
	`total_cost` text NOT NULL,
	`orphaned` integer DEFAULT false NOT NULL,
	`seen_at` integer NOT NULL
);
--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `purchases_by_token` ON `purchases` (`token_id`);--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `purchases_by_block` ON `purchases` (`block_number`);--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `purchases_orphaned` ON `purchases` (`block_number`) WHERE orphaned = 1;--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `quotes` (
	`tier` integer NOT NULL,
	`price_per_day` text NOT NULL,
	`block_number` integer NOT NULL,
	`quoted_at` integer NOT NULL,
	PRIMARY KEY(`tier`, `price_per_day`)
);
--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `refunds` (
	`incarnation` text NOT NULL,
	`kind` text NOT NULL,
	`token_id` integer NOT NULL,
	`state` text NOT NULL,
	`reason` text,
	`owed_seconds` integer,
	`amount` text NOT NULL,
	`recipient` text,
	`pay_to` text,
	`tx_hash` text,
	`wake_at` integer,
	`created_at` integer NOT NULL,
	`settled_at` integer,
	PRIMARY KEY(`incarnation`, `kind`)
);
--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `refunds_to_wake` ON `refunds` (`wake_at`) WHERE wake_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `refunds_by_token` ON `refunds` (`token_id`);--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `refunds_by_state` ON `refunds` (`state`,`token_id`);--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `renewals` (
	`block_number` integer NOT NULL,
	`log_index` integer NOT NULL,
	`token_id` integer NOT NULL,
	`new_expiry` integer NOT NULL,
	PRIMARY KEY(`block_number`, `log_index`)
);
--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `renewals_by_token` ON `renewals` (`token_id`,`new_expiry`);--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `settlements` (
	`tx_hash` text NOT NULL,
	`log_index` integer NOT NULL,
	`payment` text NOT NULL,
	PRIMARY KEY(`tx_hash`, `log_index`)
);
--> statement-breakpoint
CREATE UNIQUE INDEX IF NOT EXISTS `settlements_by_payment` ON `settlements` (`payment`);--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `transfers` (
	`block_number` integer NOT NULL,
	`log_index` integer NOT NULL,
	`block_hash` text NOT NULL,
	`token_id` integer NOT NULL,
	`sender` text NOT NULL,
	`recipient` text NOT NULL,
	PRIMARY KEY(`block_number`, `log_index`)
);
--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `transfers_by_token` ON `transfers` (`token_id`,`block_number`,`log_index`);--> statement-breakpoint
CREATE TABLE IF NOT EXISTS `vms` (
	`incarnation` text PRIMARY KEY NOT NULL,
	`token_id` integer NOT NULL,
	`current` integer DEFAULT true NOT NULL,
	`owner` text NOT NULL,
	`tier` integer NOT NULL,
	`vm_type` text NOT NULL,
	`tx_hash` text NOT NULL,
	`block_number` integer NOT NULL,
	`status` text NOT NULL,
	`step` text NOT NULL,
	`generation` integer DEFAULT 1 NOT NULL,
	`lease` text DEFAULT '' NOT NULL,
	`lease_until` integer DEFAULT 0 NOT NULL,
	`wake_at` integer,
	`deadline` integer NOT NULL,
	`put_off` integer DEFAULT 0 NOT NULL,
	`created_at` integer NOT NULL,
	`expires_at` integer NOT NULL,
	`check_at` integer,
	`expired_at` integer,
	`attempt` integer DEFAULT 0 NOT NULL,
	`provider` text,
	`region` text,
	`plan` text,
	`instance_id` text,
	`ssh_host` text,
	`ssh_port` integer,
	`ssh_private_key` text,
	`key_id` text,
	`running_at` integer,
	`late_seconds` integer,
	`delivered_at` integer,
	`delivered_to` text,
	`known_to_former` integer DEFAULT false NOT NULL,
	`acknowledged_at` integer,
	`sealed_at` integer,
	`fresh_owner` text,
	`failure` text
);
--> statement-breakpoint
CREATE UNIQUE INDEX IF NOT EXISTS `vms_current_token` ON `vms` (`token_id`) WHERE current = 1;--> statement-breakpoint
CREATE UNIQUE INDEX IF NOT EXISTS `vms_instance` ON `vms` (`provider`,`instance_id`) WHERE instance_id IS NOT NULL;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `vms_by_owner` ON `vms` (`owner`,`token_id`) WHERE current = 1;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `vms_to_wake` ON `vms` (`wake_at`) WHERE wake_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `vms_to_check` ON `vms` (`check_at`) WHERE check_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `vms_pending` ON `vms` (`running_at`,`created_at`) WHERE current = 1 AND status = 'provisioning';--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `vms_delivered` ON `vms` (`delivered_at`) WHERE ssh_private_key IS NOT NULL AND delivered_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `vms_sealed` ON `vms` (`sealed_at`) WHERE ssh_private_key IS NOT NULL AND sealed_at IS NOT NULL;--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `vms_by_status` ON `vms` (`status`,`token_id`) WHERE current = 1 AND status <> 'provisioning';--> statement-breakpoint
CREATE INDEX IF NOT EXISTS `vms_by_key` ON `vms` (`key_id`) WHERE ssh_private_key IS NOT NULL;