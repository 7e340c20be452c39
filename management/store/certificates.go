package store

import (
	"database/sql"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// PutCertificate stores a domain's pair.
func (t *tx) PutCertificate(c *management.CertificateRow) error {
	names, err := text(c.Names)
	if err != nil {
		return err
	}
	warnings, err := text(c.Warnings)
	if err != nil {
		return err
	}
	if err := t.DeleteCertificate(c.DomainID); err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO certificates (id, domain_id, tenant_id, chain_pem, sealed_key, issuer, serial, sha256, key_type, names, warnings,
		not_before, not_after, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		c.ID, c.DomainID, c.TenantID, c.ChainPEM, c.Key, c.Issuer, c.Serial, c.SHA256, c.KeyType, names, warnings,
		micros(c.NotBefore), micros(c.NotAfter), micros(c.CreatedAt))
	return err
}

// FindCertificate finds a domain's pair.
func (t *tx) FindCertificate(domainID string) (*management.CertificateRow, error) {
	var c management.CertificateRow
	err := t.get(`SELECT id, domain_id, tenant_id, chain_pem, sealed_key, issuer, serial, sha256, key_type, names, warnings, not_before, not_after, created_at
		FROM certificates WHERE domain_id = ?`, []any{domainID},
		&c.ID, &c.DomainID, &c.TenantID, &c.ChainPEM, &c.Key, &c.Issuer, &c.Serial, &c.SHA256, &c.KeyType, document{&c.Names}, document{&c.Warnings},
		moment{&c.NotBefore}, moment{&c.NotAfter}, moment{&c.CreatedAt})
	if err != nil {
		return nil, err
	}
	return &c, nil
}

// FindCertificates finds domains' pairs for a list, which shows neither chain nor key.
func (t *tx) FindCertificates(domainIDs []string) (all []*management.CertificateRow, err error) {
	if len(domainIDs) == 0 {
		return nil, nil
	}
	args := make([]any, len(domainIDs))
	for i, id := range domainIDs {
		args[i] = id
	}
	err = t.each(`SELECT id, domain_id, tenant_id, issuer, serial, sha256, key_type, names, warnings, not_before, not_after, created_at
		FROM certificates WHERE domain_id IN (?`+strings.Repeat(`, ?`, len(args)-1)+`)`, args, func(rows *sql.Rows) error {
		var c management.CertificateRow
		all = append(all, &c)
		return rows.Scan(&c.ID, &c.DomainID, &c.TenantID, &c.Issuer, &c.Serial, &c.SHA256, &c.KeyType, document{&c.Names}, document{&c.Warnings},
			moment{&c.NotBefore}, moment{&c.NotAfter}, moment{&c.CreatedAt})
	})
	return all, err
}

// DeleteCertificate removes a domain's pair.
func (t *tx) DeleteCertificate(domainID string) error {
	_, err := t.exec(`DELETE FROM certificates WHERE domain_id = ?`, domainID)
	return err
}

// FindSealedKeys walks through all sealed keys.
func (t *tx) FindSealedKeys(afterID string, limit int) (all []*management.CertificateRow, err error) {
	err = t.each(`SELECT id, domain_id, tenant_id, sealed_key FROM certificates WHERE id > ? ORDER BY id LIMIT ?`, []any{afterID, limit}, func(rows *sql.Rows) error {
		var c management.CertificateRow
		all = append(all, &c)
		return rows.Scan(&c.ID, &c.DomainID, &c.TenantID, &c.Key)
	})
	return all, err
}

// FindSealedHeads reads each sealed value once, but no more of it than its head: 100,000 take some tenths of a second.
func (t *tx) FindSealedHeads(n int) (heads [][]byte, err error) {
	err = t.each(`SELECT substr(sealed_key, 1, ?) FROM certificates
		UNION SELECT substr(totp, 1, ?) FROM users WHERE totp IS NOT NULL
		UNION SELECT substr(totp_pending, 1, ?) FROM users WHERE totp_pending IS NOT NULL`, []any{n, n, n}, func(rows *sql.Rows) error {
		var head []byte
		err := rows.Scan(&head)
		heads = append(heads, head)
		return err
	})
	return heads, err
}

// UpdateSealedKey stores the same key under another master key. Edges are sent the key itself: for them nothing changes.
func (t *tx) UpdateSealedKey(certificateID, domainID string, key []byte) error {
	if err := t.execOne(`UPDATE certificates SET sealed_key = ? WHERE id = ?`, key, certificateID); err != nil {
		return err
	}
	_, err := t.exec(`UPDATE feed SET sealed_key = ? WHERE domain_id = ? AND sealed_key IS NOT NULL`, key, domainID)
	return err
}
